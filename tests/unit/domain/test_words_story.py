"""What a simulated model writes, and that it can be put down and taken up anywhere."""

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from components.domain.story import Story
from components.domain.words import END_ID, vocabulary
from schemas.body import SamplingParameters

PROMPT = [1, 300, 301, 302]


def told(prompt=PROMPT, emitted=(), choice=0, **sampling):
    """(ids, text, finish) of a story up to its end."""
    story = Story(prompt, emitted, SamplingParameters(**sampling), choice)
    ids, text = [], ""
    while story.finish is None:
        written = story.next()
        ids.append(written.token_id)
        text += written.text
    return ids, text, story.finish


def text_of(ids):
    return "".join(vocabulary().text(t) for t in ids)


prompts = st.lists(st.integers(0, 6000), min_size=1, max_size=40)
stops = st.lists(st.sampled_from([" the", ".", " a", "e", ", ", ". The"]), max_size=3)


@given(
    prompt=prompts,
    cut=st.integers(0, 60),
    choice=st.integers(0, 3),
    seed=st.none() | st.integers(-5, 2**70),
    temperature=st.sampled_from([0.0, 1.0]),
    stop=stops,
    min_tokens=st.integers(0, 30),
    ignore_eos=st.booleans(),
)
def test_a_continuation_equals_the_uninterrupted_story(prompt, cut, choice, **sampling):
    sampling |= {"max_tokens": 60}
    parameters = SamplingParameters(**sampling)
    story = Story(prompt, (), parameters, choice)
    ids, texts = [], []
    while story.finish is None:
        written = story.next()
        ids.append(written.token_id)
        texts.append(written.text)
    cut = min(cut, len(ids))
    other = Story(prompt, ids[:cut], parameters, choice)
    rest = []
    while other.finish is None:
        rest.append(other.next())
    assert [w.token_id for w in rest] == ids[cut:]
    assert [w.text for w in rest] == texts[cut:]
    assert other.finish == story.finish


def test_every_token_depends_on_all_before_it():
    assert told([1, 300, 301], max_tokens=8) != told([1, 299, 301], max_tokens=8)
    assert told([1, 300], max_tokens=8) != told([1, 301], max_tokens=8)


def test_seed_and_choice_matter_unless_the_temperature_is_zero():
    several = {tuple(told(seed=s, choice=c, max_tokens=30)[0]) for s in (1, 2) for c in (0, 1)}
    assert len(several) == 4
    greedy = {
        tuple(told(seed=s, choice=c, max_tokens=30, temperature=0)[0])
        for s in (1, None)
        for c in (0, 1)
    }
    assert len(greedy) == 1


def test_it_reads_as_sentences():
    ids, text, _ = told(max_tokens=4000, ignore_eos=True, prompt=[1])
    assert text == text_of(ids)
    sentences = [s.strip() for s in text.replace("?", ".").replace("!", ".").split(".")][:-1]
    assert len(sentences) > 200
    assert all(s[0].isupper() and s[1:] == s[1:].lower() for s in sentences)
    assert 6 < statistics.mean(len(s.split()) for s in sentences) < 14


def test_stories_end_after_about_two_hundred_tokens():
    lengths = []
    for number in range(600):
        ids, _, finish = told([1, 300 + number], max_tokens=10_000)
        assert (ids[-1], finish) == (END_ID, ("stop", None))
        lengths.append(len(ids))
    assert 170 < statistics.mean(lengths) < 230


def test_the_end_token_counts_but_adds_no_text():
    ids, text, _ = told(max_tokens=10_000)
    assert text == text_of(ids[:-1])


def test_ignoring_the_end_runs_to_the_limit():
    ids, _, finish = told(max_tokens=3000, ignore_eos=True)
    assert (len(ids), END_ID in ids, finish) == (3000, False, ("length", None))


def test_no_end_before_the_minimum():
    short = next([1, n] for n in range(300, 900) if len(told([1, n], max_tokens=999)[0]) < 40)
    ids, _, _ = told(short, max_tokens=999, min_tokens=200)
    assert len(ids) >= 200
    stop = vocabulary().comma
    ids, _, finish = told(max_tokens=999, min_tokens=200, stop_token_ids=(stop,), ignore_eos=True)
    assert len(ids) > 200
    assert stop not in ids[:200]
    assert finish == ("stop", stop)


def test_a_stop_token_ends_it_and_is_not_part_of_the_text():
    stop = vocabulary().comma
    ids, text, finish = told(max_tokens=999, stop_token_ids=(stop,), ignore_eos=True)
    assert (ids[-1], finish) == (stop, ("stop", stop))
    assert text == text_of(ids[:-1])


@given(prompt=prompts, start=st.integers(0, 40), length=st.integers(1, 25))
def test_not_a_character_of_a_stop_string_leaks(prompt, start, length):
    whole = told(prompt, max_tokens=60, ignore_eos=True)[1]
    stop = whole[start : start + length]  # spans tokens more often than not
    story = Story(prompt, (), SamplingParameters(max_tokens=60, ignore_eos=True, stop=(stop,)))
    expected, text = whole.split(stop)[0], ""
    while story.finish is None:
        text += story.next().text
        assert expected.startswith(text)
    assert (text, story.finish) == (expected, ("stop", stop))


def test_what_looked_like_a_stop_string_comes_out_when_it_was_none():
    whole = told(max_tokens=60, ignore_eos=True)[1]
    _, text, finish = told(max_tokens=60, ignore_eos=True, stop=(whole[-5:] + "never",))
    assert (text, finish) == (whole, ("length", None))
    _, text, _ = told(max_tokens=60, ignore_eos=True, stop=(whole[10:20] + "never",))
    assert text == whole


def test_stop_strings_do_not_count_before_the_minimum():
    ids, text, finish = told(max_tokens=400, min_tokens=100, stop=(".",), ignore_eos=True)
    assert len(ids) > 100
    assert "." in text
    assert finish == ("stop", ".")


def test_logprobs_are_sane_and_the_same_each_time():
    parameters = SamplingParameters(max_tokens=50, logprobs=5, ignore_eos=True)
    runs = []
    for _ in range(2):
        story = Story(PROMPT, (), parameters)
        runs.append([story.next() for _ in range(50)])
    assert runs[0] == runs[1]
    for written in runs[0]:
        assert written.logprobs is not None
        chosen, *top = written.logprobs
        assert chosen[0] == written.token_id
        assert len({a[0] for a in top}) == len(top) == 5
        logprobs = [float(a[1]) for a in top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(math.exp(p) for p in logprobs) < 1
        assert chosen == top[0]


def test_logprobs_change_no_token_and_zero_gives_the_chosen_one_only():
    assert told(max_tokens=40)[0] == told(max_tokens=40, logprobs=3)[0]
    story = Story(PROMPT, (), SamplingParameters(logprobs=0))
    written = story.next()
    assert [a[0] for a in written.logprobs or ()] == [written.token_id]
    assert Story(PROMPT, (), SamplingParameters()).next().logprobs is None
