"""Who is to blame when a worker dies, hangs or eats memory, told with workers that only pretend."""

import time
from queue import Queue

import pytest

from medseg.archive.foreman import Foreman, Limits
from medseg.archive.post import Event
from medseg.archive.task import AGAIN, DEPTH, DONE, FAILED, Outcome, Task
from medseg.errors import DeviceError, MedsegError


class Pretender:
    """A post that does what a test says."""

    def __init__(self, inbox):
        self.name, self.life, self.inbox, self.given, self.bytes = "worker", 0, inbox, [], 0

    def start(self):
        self.life += 1
        self.given = []
        self.say("ready", gpus=0)

    def say(self, kind, **data):
        self.inbox.put(Event(self, self.life, kind, data))

    def give(self, task):
        self.given.append(task.place)

    def held(self):
        return self.bytes

    def stop(self):
        pass

    def begin(self, *places):
        for place in places:
            self.say("stage", place=place, stage="read")

    def die(self):
        self.say("lost", status=-9)


def task(place):
    return Task(place, "", "", "", "scan")


@pytest.fixture
def crew():
    """A function that returns a foreman with one post, ready, and the post."""

    def make(**limits):
        inbox = Queue()
        post = Pretender(inbox)
        foreman = Foreman([post], inbox, Limits(**limits))
        foreman.listen(0.01)
        return foreman, post

    return make


def told(returned):
    return [(one.task.place, one.outcome and one.outcome.code, one.alone) for one in returned]


def test_a_post_has_so_many_tasks_at_a_time(crew):
    foreman, post = crew()
    for number in range(DEPTH):
        assert foreman.room()
        foreman.give(task(str(number)))
    assert not foreman.room()
    post.say("outcome", place="1", outcome=Outcome(DONE).plain())
    assert told(foreman.listen(0.1)) == [("1", "", False)]
    assert foreman.room()
    assert not foreman.room(alone=True)


def test_all_that_were_under_way_when_a_post_died_are_suspects_and_what_waited_is_not(crew):
    foreman, post = crew()
    for place in "abc":
        foreman.give(task(place))
    post.begin("a", "b")
    post.die()
    assert told(foreman.listen(0.1)) == [("a", None, True), ("b", None, True), ("c", None, False)]
    assert post.life == 2


def test_the_guilty_one_dies_alone_as_often_as_it_may(crew):
    foreman, post = crew(tries=2)
    for last in (False, True):
        foreman.listen(0.01)
        foreman.give(task("a"), alone=True)
        assert not foreman.room()
        post.begin("a")
        post.die()
        found = foreman.listen(0.1)
        assert told(found) == [("a", "WORKER_DIED" if last else None, not last)]
    assert found[0].outcome.state == FAILED


def test_what_an_earlier_life_said_counts_no_more(crew):
    foreman, post = crew()
    foreman.give(task("a"))
    post.begin("a")
    post.die()
    late = Event(post, post.life, "outcome", {"place": "a", "outcome": Outcome(DONE).plain()})
    foreman.listen(0.1)
    foreman.give(task("a"), alone=True)
    post.inbox.put(late)
    assert told(foreman.listen(0.05)) == []


def test_the_one_that_hangs_fails_and_its_neighbours_wait_again(crew):
    foreman, post = crew(seconds=0.1)
    for place in "ab":
        foreman.give(task(place))
    post.begin("a")
    found = foreman.listen(0.15) or foreman.listen(0.1)
    assert sorted(told(found), key=str) == [("a", "TIME_LIMIT", False), ("b", None, False)]
    assert post.life == 2


def test_time_in_which_a_task_waits_for_others_is_not_its_own(crew):
    foreman, post = crew(seconds=0.2)
    foreman.give(task("a"))
    post.begin("a")
    foreman.listen(0.05)
    post.say("stage", place="a", stage="")
    foreman.listen(0.01)
    time.sleep(0.3)
    assert told(foreman.listen(0.01)) == []


def test_memory_is_laid_to_the_only_task_and_not_to_one_of_several(crew):
    foreman, post = crew(memory=10**9)
    for place in "ab":
        foreman.give(task(place))
    post.bytes = 3 * 10**9
    assert told(foreman.listen(0.05)) == [("a", None, True), ("b", None, True)]
    post.bytes = 0
    foreman.listen(0.05)
    foreman.give(task("a"), alone=True)
    post.bytes = 3 * 10**9
    assert told(foreman.listen(0.05)) == [("a", "MEMORY_LIMIT", False)]


def test_a_lack_of_memory_beside_others_is_tried_alone_before_it_counts(crew):
    foreman, post = crew()
    foreman.give(task("a"))
    lack = Outcome(AGAIN, "MemoryLimit", "needs more").plain()
    post.say("outcome", place="a", outcome=lack)
    assert told(foreman.listen(0.1)) == [("a", None, True)]
    foreman.give(task("a"), alone=True)
    post.say("outcome", place="a", outcome=lack)
    (found,) = foreman.listen(0.1)
    assert (found.outcome.state, found.outcome.code) == (FAILED, "MemoryLimit")


def test_a_post_that_cannot_work_ends_the_run_with_its_own_words(crew):
    foreman, post = crew()
    post.say("broken", code="DeviceError", problem="no such device", hint="take another")
    with pytest.raises(MedsegError, match="no such device; take another"):
        foreman.listen(0.1)


def test_a_post_that_always_dies_before_it_is_ready_ends_the_run(crew):
    foreman, post = crew()
    post.say = lambda kind, **data: Pretender.say(post, kind, **data) if kind == "lost" else None
    with pytest.raises(DeviceError, match="died 10 times"):
        for _ in range(20):
            post.die()
            foreman.listen(0.05)


def test_one_process_is_started_for_every_gpu(crew):
    foreman, post = crew()
    asked = []

    def more(gpus):
        asked.append(gpus)
        return [Pretender(post.inbox) for _ in range(gpus - 1)]

    foreman = Foreman([post], post.inbox, Limits(), more)
    for _ in range(2):
        post.say("ready", gpus=3)
        foreman.listen(0.05)
    assert asked == [3]
    for number in range(3 * DEPTH):
        foreman.give(task(str(number)))
    assert not foreman.room()


def test_workers_share_the_cores_and_have_a_device_each():
    from medseg.archive.batch import local_posts
    from medseg.archive.task import Settings

    posts = [*local_posts(Settings(device="cuda:0,cuda:1"), Queue(), 2)]
    assert sorted(post.settings.device for post in posts) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert {post.settings.threads for post in posts} != {None}
    assert [post.settings.device for post in local_posts(Settings(), Queue(), 1, gpus=3)] == ["cuda:1", "cuda:2"]
