"""A process that dies comes back at once, one that keeps dying with growing pauses, for ever."""

from components.cli.restarts import LOOP_DEATHS, PAUSE_MAX_S, STEADY_S, Restart, Restarts, pause_s


def test_the_first_restart_is_at_once_and_the_pauses_double_up_to_five_seconds():
    pauses = [round(pause_s(deaths), 3) for deaths in range(1, 10)]
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_loop_of_months_still_has_a_pause():
    assert pause_s(10_000_000) == PAUSE_MAX_S


def test_deaths_in_quick_succession_add_up():
    restarts = Restarts()
    restarts.on_start(100.0)
    assert restarts.on_exit(100.2) == Restart(0.0, 1)
    restarts.on_start(100.2)
    assert restarts.on_exit(100.3) == Restart(0.1, 2)


def test_a_steady_life_clears_the_record():
    restarts = Restarts(deaths=4)
    restarts.on_start(0.0)
    assert restarts.on_exit(STEADY_S - 0.001).deaths == 5
    restarts.on_start(100.0)
    assert restarts.on_exit(100.0 + STEADY_S) == Restart(0.0, 1)


def test_many_deaths_in_a_row_are_a_crash_loop():
    assert not Restart(0.0, LOOP_DEATHS - 1).is_crash_loop
    assert Restart(0.0, LOOP_DEATHS).is_crash_loop


def test_a_crash_loop_is_told_again_each_time_its_length_has_doubled():
    told = [deaths for deaths in range(1, 100) if Restart(0.0, deaths).is_news]
    assert told == [1, 2, 3, 4, 5, 10, 20, 40, 80]


def test_no_pause_is_negative_or_over_the_bound():
    assert all(0 <= pause_s(deaths) <= PAUSE_MAX_S for deaths in range(200))
