"""Sessions go on once per token, and guessing is bounded."""

from pathlib import Path

from components.registry.secrets import (
    bootstrap_password,
    hash_password,
    is_password,
)
from components.registry.sessions import Guesses, Sessions


def test_a_refresh_token_works_once_and_a_second_time_ends_the_session():
    sessions = Sessions(10, 100.0)
    sessions.begin("s", "ann", "t1", 0.0)
    assert sessions.go_on("s", "t1", "t2", 1.0) == "ann"
    assert sessions.go_on("s", "t1", "t3", 2.0) is None
    # Whoever holds the younger one is out as well: one of the two stole it.
    assert sessions.go_on("s", "t2", "t4", 3.0) is None


def test_a_session_ends_with_its_time_and_with_its_account():
    sessions = Sessions(10, 100.0)
    sessions.begin("s", "ann", "t", 0.0)
    assert sessions.go_on("s", "t", "u", 100.0) is None
    sessions.begin("s", "ann", "t", 0.0)
    sessions.begin("r", "bob", "t", 0.0)
    sessions.end_all_of("ann")
    assert sessions.go_on("s", "t", "u", 1.0) is None
    assert sessions.go_on("r", "t", "u", 1.0) == "bob"


def test_sessions_are_bounded_and_the_oldest_makes_room():
    sessions = Sessions(2, 100.0)
    for name in "abc":
        sessions.begin(name, name, "t", 0.0)
    assert len(sessions) == 2
    assert sessions.go_on("a", "t", "u", 1.0) is None


def test_sessions_that_ended_make_room_when_the_next_one_begins():
    sessions = Sessions(10, 100.0)
    sessions.begin("a", "ann", "t", 0.0)
    sessions.begin("b", "bob", "t", 1.0)
    sessions.begin("c", "cat", "t", 99.0)
    assert len(sessions) == 3
    # At its very end a session is over: the first one goes, the second has a second left.
    sessions.begin("d", "dan", "t", 100.0)
    assert len(sessions) == 3
    assert sessions.go_on("b", "t", "u", 100.0) == "bob"


def test_guesses_are_bounded_per_account_and_per_address():
    guesses = Guesses(per_user_min=2, per_address_min=3)
    assert [guesses.may("ann", "a", 0.0) for _ in range(3)] == [True, True, False]
    # Three from this address by now, whatever the account.
    assert guesses.may("bob", "a", 0.0) is False
    assert guesses.may("bob", "b", 0.0) is True
    assert guesses.may("ann", "c", 31.0) is True


def test_a_name_that_was_not_heard_yet_has_all_its_guesses():
    guesses = Guesses(per_user_min=3, per_address_min=100)
    for name in ("ann", "bob"):
        assert [guesses.may(name, "a", 0.0) for _ in range(4)] == [True, True, True, False]
    by_address = Guesses(per_user_min=100, per_address_min=3)
    assert [by_address.may("ann", "a", 0.0) for _ in range(4)] == [True, True, True, False]


def test_of_guesses_so_many_names_are_remembered_and_the_one_unused_longest_makes_room():
    guesses = Guesses(per_user_min=1, per_address_min=100, names_max=2)
    assert guesses.may("ann", "x", 0.0)
    assert guesses.may("bob", "x", 0.0)
    # Ann guesses again, in vain, and is the younger of the two by that.
    assert not guesses.may("ann", "x", 0.0)
    # Cat makes three: bob is forgotten, and may guess anew.
    assert guesses.may("cat", "x", 0.0)
    assert not guesses.may("ann", "x", 0.0)
    assert guesses.may("bob", "x", 0.0)


def test_a_password_is_known_by_its_hash_and_by_no_other():
    hashed = hash_password("correct horse")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert is_password("correct horse", hashed)
    assert not is_password("battery staple", hashed)
    assert not is_password("x", "rubbish")
    assert hash_password("correct horse") != hashed


def test_the_first_password_is_left_for_its_owner_alone(tmp_path: Path):
    first = bootstrap_password(tmp_path)
    file = tmp_path / "admin.password"
    assert file.read_text().strip() == first
    assert file.stat().st_mode & 0o777 == 0o600
    assert bootstrap_password(tmp_path) != first
