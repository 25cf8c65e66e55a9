"""Who ended while nothing could be asked leaves a tail that nobody can count."""

from components.replay.lives import Lives, Tail


def test_a_life_that_ends_while_all_is_well_leaves_no_tail():
    lives = Lives(gone_after_s=20)
    lives.on_answer("decode-0", 1, 0.0)
    assert lives.on_tick(99.0) == []


def test_a_life_that_answered_after_the_trouble_leaves_no_tail():
    lives = Lives(gone_after_s=20)
    lives.on_answer("decode-0", 1, 0.0)
    lives.on_trouble(1.0)
    lives.on_answer("decode-0", 1, 3.0)
    assert lives.on_tick(99.0) == []


def test_a_life_that_did_not_answer_since_the_trouble_leaves_one_once():
    lives = Lives(gone_after_s=20)
    lives.on_answer("decode-0", 1, 10.0)
    lives.on_answer("decode-1", 1, 11.0)
    lives.on_trouble(12.0)
    lives.on_answer("decode-1", 1, 14.0)
    assert lives.on_tick(32.0) == []  # nobody could answer until 12
    assert lives.on_tick(32.1) == [Tail("decode-0", 1, 10.0)]
    assert lives.on_tick(99.0) == []


def test_an_older_life_of_the_same_name_is_another():
    lives = Lives(gone_after_s=20)
    lives.on_answer("decode-0", 1, 10.0)
    lives.on_trouble(11.0)
    for now_s in range(12, 40):
        lives.on_answer("decode-0", 2, now_s)
    assert lives.on_tick(40.0) == [Tail("decode-0", 1, 10.0)]


def test_the_table_is_bounded_and_what_is_forgotten_is_counted():
    lives = Lives(gone_after_s=20, lives_max=2)
    for epoch in range(3):
        lives.on_answer("decode-0", epoch, float(epoch))
    assert lives.forgotten_total == 1
    lives.on_answer("decode-0", 1, 3.0)  # known: nobody has to make room
    lives.on_trouble(3.0)
    assert [tail.epoch for tail in lives.on_tick(99.0)] == [2, 1]
    assert lives.forgotten_total == 1


def test_the_one_silent_for_longest_makes_room():
    lives = Lives(gone_after_s=20, lives_max=2)
    for epoch, now_s in ((0, 0.0), (1, 1.0), (0, 2.0), (2, 3.0)):
        lives.on_answer("decode-0", epoch, now_s)
    lives.on_trouble(4.0)
    assert [tail.epoch for tail in lives.on_tick(99.0)] == [0, 2]
