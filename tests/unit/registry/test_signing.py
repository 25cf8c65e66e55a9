"""One key signs, those before it are told while their tokens live; its file survives a crash."""

from pathlib import Path

import pytest

from components.host.errors import CannotStart
from components.registry.secrets import SigningKeyFile
from components.registry.signing import FORMER_MAX, SigningKeys, TooManyKeys, key_id


def seed(number: int) -> bytes:
    return bytes([number]) * 32


def ids(keys: SigningKeys, now_ms: int) -> list[str]:
    return [key.kid for key in keys.told(now_ms)]


def test_a_new_key_signs_and_the_former_one_is_told_until_its_tokens_have_ended():
    first = SigningKeys.made(seed(1))
    second = first.followed_by(seed(2), 1_000, 930_000)
    assert second.kid != first.kid
    assert ids(second, 1_000) == ids(second, 930_999) == [second.kid, first.kid]
    assert ids(second, 931_000) == [second.kid]
    third = second.followed_by(seed(3), 400_000, 930_000)
    assert ids(third, 930_999) == [third.kid, second.kid, first.kid]
    assert ids(third, 931_000) == [third.kid, second.kid]
    assert all(key_id(key.public) == key.kid for key in third.told(0))


def test_after_a_compromise_no_key_counts_that_signed_before():
    keys = SigningKeys.made(seed(1)).followed_by(seed(2), 0, 930_000)
    fresh = keys.followed_by(seed(3), 1, 0)
    assert ids(fresh, 1) == [SigningKeys.made(seed(3)).kid]


def test_former_keys_are_bounded_and_those_that_ended_make_room():
    keys = SigningKeys.made(seed(0))
    for number in range(FORMER_MAX):
        keys = keys.followed_by(seed(number + 1), number * 1_000, 60_000)
    assert len(keys.told(8_000)) == FORMER_MAX + 1
    with pytest.raises(TooManyKeys, match="in 52 s, or drop them all at once") as why:
        keys.followed_by(seed(99), 8_000, 60_000)
    later_ms = 8_000 + why.value.wait_s * 1_000
    last = keys.followed_by(seed(99), later_ms, 60_000)
    assert len(last.told(later_ms)) == FORMER_MAX + 1
    assert ids(keys.followed_by(seed(99), 8_000, 0), 8_000) == [SigningKeys.made(seed(99)).kid]


def test_what_is_kept_of_a_former_key_signs_nothing():
    keys = SigningKeys.made(seed(1)).followed_by(seed(2), 0, 930_000)
    assert seed(2).hex() in keys.text
    assert seed(1).hex() not in keys.text
    again = SigningKeys.parsed(keys.text)
    assert (again.kid, again.former) == (keys.kid, keys.former)


@pytest.mark.parametrize(
    "text",
    ["", "rubbish", "ab" * 31, "ab" * 32 + "\nrubbish", "ab" * 32 + "\n" + "cd" * 32 + " soon"],
)
def test_what_is_no_file_of_keys_is_refused_without_being_repeated(text: str):
    with pytest.raises(ValueError, match="does not hold keys") as why:
        SigningKeys.parsed(text)
    assert str(why.value) == "it does not hold keys as this program writes them"


def test_the_signing_key_is_made_once_and_kept_from_others(tmp_path: Path):
    first = SigningKeyFile(tmp_path / "access").read()
    assert SigningKeyFile(tmp_path / "access").read().kid == first.kid
    file = tmp_path / "access" / "signing.key"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(CannotStart, match="chmod 600"):
        SigningKeyFile(tmp_path / "access").read()
    file.chmod(0o600)
    file.write_text("rubbish")
    with pytest.raises(CannotStart, match="cannot use the signing key"):
        SigningKeyFile(tmp_path / "access").read()


def test_a_crash_while_keys_are_written_leaves_those_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = SigningKeyFile(tmp_path)
    before = kept.read()
    following = before.followed_by(seed(2), 0, 930_000)

    def power_cut(*_: object) -> None:
        raise OSError(5, "power cut")

    for step in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as cut:
            cut.setattr(step, power_cut)
            with pytest.raises(OSError, match="power cut"):
                kept.write(following)
        left = tmp_path / "signing.key.new"
        assert left.stat().st_mode & 0o777 == 0o600
        assert SigningKeyFile(tmp_path).read().text == before.text
        # A key that never signed lies around no longer.
        assert not left.exists()
    # Nor is what was left in the way of a process that lives on.
    left.write_text("half a k")
    kept.write(following)
    assert SigningKeyFile(tmp_path).read().text == following.text
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
