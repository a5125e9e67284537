"""How threads that share a step wait for each other: LLVM text of a counter that all of them add to.

They look at it for some microseconds, and then offer the processor to others between two looks, so that a machine with
more to do than cores goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from chainrule.backends.native.emitter import Emitter

_SPINS = 500  # looks at a counter before the processor is offered to others
BEGIN = 8  # place of the word (in words) that says whether the first thread has come, away from that of the meetings


def functions(triple: str) -> list[str]:
    """LLVM text: ``meet`` returns once all threads are there; ``begun`` once the first is (1) or will not come (2).

    Meetings are counted, never taken back, so a thread that is still leaving one cannot miss it.
    """
    windows = "windows" in triple or "msvc" in triple
    rest = "declare i32 @SwitchToThread()" if windows else "declare i32 @sched_yield()"
    offer = "call i32 @SwitchToThread()" if windows else "call i32 @sched_yield()"
    if triple.startswith(("x86_64", "i686", "amd64")):
        rest, pause = rest + "\ndeclare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"
    elif triple.startswith(("aarch64", "arm64")):
        rest, pause = rest + "\ndeclare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"
    else:
        pause = ""

    def until(place: str, condition: str) -> str:
        return f"""spin:
  %n = phi i64 [ 0, %entry ], [ %again, %next ]
  %now = load atomic i64, ptr {place} acquire, align 8
  %met = icmp {condition}
  br i1 %met, label %done, label %wait
wait:
  {pause}
  %again = add nuw nsw i64 %n, 1
  %long = icmp ugt i64 %again, {_SPINS}
  br i1 %long, label %offer, label %next
offer:
  %ignored = {offer}
  br label %next
next:
  br label %spin
"""

    return [
        rest,
        f"""define internal void @meet(ptr %team, i64 %crew, ptr %turn) noinline {{
entry:
  %before = load i64, ptr %turn, align 8
  %goal = add i64 %before, %crew
  store i64 %goal, ptr %turn, align 8
  %old = atomicrmw add ptr %team, i64 1 acq_rel
  %mine = add i64 %old, 1
  %last = icmp uge i64 %mine, %goal
  br i1 %last, label %done, label %spin
{until("%team", "uge i64 %now, %goal")}done:
  ret void
}}""",
        f"""define internal i64 @begun(ptr %team) noinline {{
entry:
  %word = getelementptr inbounds i64, ptr %team, i64 {BEGIN}
  br label %spin
{until("%word", "ne i64 %now, 0")}done:
  ret i64 %now
}}""",
    ]


def entry(e: Emitter, run: Callable[[], None]) -> None:
    """The start of a call: the first thread says that it is there, the others wait for it."""
    word = e.let(f"getelementptr inbounds i64, ptr %team, i64 {BEGIN}")
    first = e.let("icmp eq i64 %begin, 0")
    e.when(first, lambda: e.line(f"store atomic i64 1, ptr {word} release, align 8"))
    e.when(e.let(f"icmp eq i64 {e.let('call i64 @begun(ptr %team)')}, 1"), run)
