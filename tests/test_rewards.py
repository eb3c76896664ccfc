"""The paper's rewards against cases worked out by hand, and checks of answers that nothing may hang or break."""

from __future__ import annotations

import inspect
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn

from verl_dra.rewards import CheckerError, Verdict, check, checker, compute_score, cosine_reward, format_reward

WORKER = str(Path(checker.__file__).with_name("worker.py"))
TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("thinking\n</think>\nanswer", 1.0),
        ("\n</think>\n", 1.0),
        ("thinking</think>\nanswer", 0.0),
        ("thinking\n</think> answer", 0.0),
        ("one\n</think>\ntwo\n</think>\n", 0.0),
        ("one\n</think>\ntwo </think> three", 1.0),
        ("", 0.0),
    ],
)
def test_format_is_one_end_of_thinking_on_a_line_of_its_own(text: str, reward: float) -> None:
    assert format_reward(text) == reward


@pytest.mark.parametrize(
    ("right", "characters", "reward"),
    [
        (True, 0, 1.0),  # cos 0 = 1: 0.5 + 0.25 * 2
        (True, 500, 0.75),  # cos(pi / 2) = 0: 0.5 + 0.25
        (True, 1000, 0.5),  # cos pi = -1: 0.5
        (True, 1500, 0.75),  # beyond the limit it rises again
        (True, 2000, 1.0),
        (False, 0, 0.0),  # -0.5 + 0.25 * 2
        (False, 500, -0.25),
        (False, 1000, -0.5),
        (False, 3000, -0.5),
        (True, 250, 0.5 + 0.25 * (1 + math.sqrt(0.5))),  # cos(pi / 4)
    ],
)
def test_cosine_by_hand(right: bool, characters: int, reward: float) -> None:
    assert cosine_reward(right, characters, 1000) == pytest.approx(reward, abs=1e-12)


@given(right=st.booleans(), characters=st.integers(0, 10**6), max_len=st.integers(1, 10**4))
def test_cosine_stays_in_its_bounds_and_comes_round(right: bool, characters: int, max_len: int) -> None:
    reward = cosine_reward(right, characters, max_len)
    low, high = (0.5, 1.0) if right else (-0.5, 0.0)
    assert low - 1e-9 <= reward <= high + 1e-9
    assert reward == pytest.approx(cosine_reward(right, characters + 2 * max_len, max_len), abs=1e-6)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("42", r"so \boxed{42}", True),
        ("$42$", r"so \boxed{42}", True),
        (r"\boxed{42}", "the final answer is $42$", True),
        ("42", r"so \boxed{43}", False),
        ("42", "the answer is 42", False),  # the paper's check takes LaTeX alone
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac12", r"\boxed{\frac{1}{2}}", True),
        (r"\frac12", r"\boxed{\frac12}", False),  # malformed LaTeX is mended in gold answers alone
        (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", True),
        ("1,000", r"\boxed{1000}", True),
        ("12", r"\boxed{12\text{ cm}}", True),
        ("x=3", r"\boxed{3}", True),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", True),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", True),
        (r"(-\infty, 3]", r"\boxed{(-\infty, 3]}", True),
        (r"(-\infty, 3]", r"\boxed{(-\infty, 3)}", False),
        (r"\frac{\sqrt{3}}{2}", r"nested: \boxed{\frac{\sqrt{3}}{2}}", True),
        ("7", r"$8$ is not it, \boxed{7} is", True),  # boxed first
        ("7", r"\boxed{7} or \boxed{8}", False),  # several boxes are a set
        ("7", r"\boxed{7", False),
        ("7", "", False),
        (r"50\%", r"\boxed{50\%}", True),
        (r"50\%", r"\boxed{5\%}", False),
        ("0.25", r"\boxed{\frac{1}{4}}", True),
        (r"\text{Tuesday}", r"\boxed{\text{Tuesday}}", True),
        (r"\text{Tuesday}", r"\boxed{\text{Monday}}", False),
        ("3", r"\boxed{2 + 1 = 3}", True),  # of an equation the last side counts where the gold answer is none
        ("x^2 + y^2 = 1", r"\boxed{1}", False),  # and not the other way round
        ("1 < x < 2", r"\boxed{(1, 2)}", True),
    ],
)
def test_answers_by_hand(gold: str, text: str, right: bool) -> None:
    verdict = check(gold, text, judge="paper")
    assert (verdict.right, verdict.gold_parsed, verdict.failed) == (right, True, False)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        # math-verify takes a \\frac{1}{2} out of text without marks of LaTeX, and leaves the rest.
        (r"3+\frac{1}{2}", r"\boxed{\frac{7}{2}}", True),
        (r"3+\frac{1}{2}", r"\boxed{\frac{1}{2}}", False),
        (r"2\frac{1}{2}", r"\boxed{2.5}", True),
        (r"2\frac{1}{2}", r"\boxed{0.5}", False),
        (r"\frac{1}{2}x", r"\boxed{\frac{x}{2}}", True),
        (r"[0, \frac{1}{2}]", r"\boxed{[0, \frac{1}{2}]}", True),
        (r"[0, \frac{1}{2}]", r"\boxed{\frac{1}{2}}", False),
        (
            r"\begin{pmatrix}1\\[2pt]\frac{1}{2}\end{pmatrix}",
            r"\boxed{\frac{1}{2}}",
            False,
        ),  # \\[ opens no formula here
        ("\n42\n", r"\boxed{42}", True),
        ("\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", True),
        ("$5", r"\boxed{5}", True),
        (r"\$5", r"\boxed{5}", True),
        # With marks of its own it is read as it stands.
        (r"$3+\frac{1}{2}$", r"\boxed{3.5}", True),
        (r"It is \(3\), so \[x = \boxed{4}\]", r"\boxed{4}", True),
    ],
)
def test_a_gold_answer_is_read_whole(gold: str, text: str, right: bool) -> None:
    verdict = check(gold, text)
    assert (verdict.right, verdict.gold_parsed, verdict.failed) == (right, True, False)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("42", "the answer is 42", True),
        (r"\frac12", r"\boxed{\frac12}", True),
        ("7", r"8 is not it, \boxed{7} is", True),
        ("7", "7 is not it, 8 is", False),
        (r"3+\frac{1}{2}", "3.5", True),
    ],
)
def test_an_evaluation_takes_plain_numbers_and_mends_latex(gold: str, text: str, right: bool) -> None:
    verdict = check(gold, text, judge="lighteval")
    assert (verdict.right, verdict.gold_parsed, verdict.failed) == (right, True, False)


def test_equal_answers_have_one_canonical_form() -> None:
    forms = [
        check(None, text).answer for text in (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"the answer is $\frac{2}{4}$")
    ]
    assert forms == ["1/2"] * 3
    assert check(None, "no answer").answer is None


def test_what_is_said_last_is_the_answer() -> None:
    said = "The answer is 3. Wait, the answer is 5."
    assert [check(gold, said).right for gold in ("5", "3")] == [True, False]


def test_a_box_that_lacks_its_last_brace_is_read() -> None:
    assert check(r"\frac{1}{2}", r"so $\boxed{\frac{1}{2}$ it is").right


def test_small_numbers_have_five_digits() -> None:
    assert check("6.7001e-11", r"\boxed{6.7001e-11}").right
    assert not check("6.7001e-11", r"\boxed{6.7002e-11}").right


def test_a_check_has_the_same_limit_for_rewards_and_evaluations() -> None:
    limits = [inspect.signature(function).parameters["timeout_s"].default for function in (check, compute_score)]
    assert limits == [5.0, 5.0]


def test_the_score_by_hand() -> None:
    text = "add\n</think>\n\\boxed{4}"
    assert len(text) == 22
    cosine = 0.5 + 0.25 * (1 + math.cos(math.pi * 22 / 1000))
    assert compute_score("any", text, "4") == {
        "score": pytest.approx(1 + 2 * cosine),
        "acc": 1.0,
        "format": 1.0,
        "cosine": pytest.approx(cosine),
        "gold_unparsed": 0.0,
        "answer_unparsed": 0.0,
        "check_failed": 0.0,
    }
    wrong = compute_score("any", "I give up", "4")
    assert wrong["score"] == pytest.approx(2 * (-0.5 + 0.25 * (1 + math.cos(math.pi * 9 / 1000))))
    assert (wrong["acc"], wrong["answer_unparsed"]) == (0.0, 1.0)


@pytest.mark.parametrize("gold", ["", " \n", "$ $"])
def test_an_unreadable_gold_answer_gives_the_papers_one(gold: str) -> None:
    score = compute_score("any", r"\boxed{4}", gold, judge="paper")
    assert (score["score"], score["acc"], score["cosine"], score["gold_unparsed"]) == (2.0, 1.0, 1.0, 1.0)


def test_weights_and_lengths_come_through_verls_configuration() -> None:
    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://verl_dra.rewards",
                    "name": "compute_score",
                    "reward_kwargs": {"format_weight": 0.0, "cosine_weight": 0.0, "accuracy_weight": 3.0},
                }
            }
        }
    )
    function = get_custom_reward_fn(config)
    assert function is not None
    arguments = {"data_source": "any", "solution_str": r"\boxed{4}", "ground_truth": "4", "extra_info": {}}
    assert function(**arguments)["score"] == 3.0
    config.reward.custom_reward_function.reward_kwargs = {"max_length": 5}
    with pytest.raises(TypeError, match="max_length"):
        get_custom_reward_fn(config)(**arguments)
    config.reward.custom_reward_function.reward_kwargs = {"max_len": 0}
    with pytest.raises(ValueError, match="max_len=0"):
        get_custom_reward_fn(config)(**arguments)


@pytest.mark.parametrize("setting", [{"timeout_s": s} for s in (0, -1.0, 3601, math.nan, math.inf)] + [{"max_len": -1}])
def test_a_limit_that_would_be_none_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be above 0, and timeout_s=\S+ too, at most 3600"):
        compute_score("any", r"\boxed{4}", "4", **setting)


def test_a_check_that_never_ends_is_ended_and_counted() -> None:
    start = time.monotonic()
    assert check("2", TOWER, timeout_s=0.5) == Verdict(right=False, gold_parsed=True, answer=None, failed=True)
    assert time.monotonic() - start < 20
    assert check("2", r"\boxed{2}").right
    score = compute_score("any", TOWER, "2", timeout_s=0.5)
    assert (score["acc"], score["check_failed"]) == (0.0, 1.0)


@pytest.mark.parametrize("text", ["x" * 10**6, "\ud800 \\boxed{2}", "\0 \\boxed{2}", "\\boxed{" * 3000, "$" * 5001])
def test_strange_texts_break_nothing(text: str) -> None:
    verdict = check("2", text)
    assert verdict.gold_parsed
    assert verdict.right == (text.endswith("\\boxed{2}"))
    assert check("2", r"\boxed{2}").right


def test_threads_check_at_the_same_time() -> None:
    cases = [(str(i), rf"\boxed{{{i + i % 2}}}") for i in range(60)]
    with ThreadPoolExecutor(12) as threads:
        verdicts = list(threads.map(lambda case: check(*case), cases))
    assert [verdict.right for verdict in verdicts] == [i % 2 == 0 for i in range(60)]


def workers(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            command = (status.parent / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if int(lines["PPid"]) == parent and "rewards/worker.py" in command:
            found.append(int(status.parent.name))
    return found


def test_a_worker_that_dies_is_replaced() -> None:
    assert check("2", r"\boxed{2}").right
    for pid in workers(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    assert check("2", r"\boxed{2}").right


def test_a_check_that_took_too_long_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("2", r"\boxed{2}").right
    started = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        started.append(arguments)
        return start(*arguments, **keywords)

    start = subprocess.Popen
    monkeypatch.setattr(checker.subprocess, "Popen", counted)
    assert check("2", TOWER, timeout_s=1.2).failed
    assert not started


def test_a_forked_process_has_workers_of_its_own() -> None:
    assert check("2", r"\boxed{2}").right
    before = workers(os.getpid())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check("3", r"\boxed{3}").right and len(workers(os.getpid())) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert check("2", r"\boxed{2}").right
    assert workers(os.getpid()) == before


def test_no_worker_outlives_its_parent_even_where_that_ignores_alarms() -> None:
    code = f"""
import os, psutil, signal, threading
from verl_dra.rewards import check
signal.signal(signal.SIGALRM, signal.SIG_IGN)
check("2", r"\\boxed{{2}}")
threading.Thread(target=check, args=("2", {TOWER!r}, 1.0), daemon=True).start()
print(*(child.pid for child in psutil.Process().children()), flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (pid,) = map(int, done.stdout.split())
    wait_for_end(pid, seconds=30)


def wait_for_end(pid: int, seconds: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(1000 * seconds), f"{pid} is still there"
    finally:
        os.close(descriptor)


def test_a_worker_takes_no_more_memory_than_its_parent_may() -> None:
    limit = 2 * 2**30
    done = subprocess.run(
        [sys.executable, WORKER],
        input=b"",
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (done.returncode, done.stdout) == (0, struct.pack("!I", 2) + b"{}"), done.stderr.decode()


def test_a_worker_keeps_the_path_that_its_user_set(tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('the one on the path')\n")
    done = subprocess.run(
        [sys.executable, WORKER],
        input=b"",
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
    )
    assert b"the one on the path" in done.stdout


def test_without_math_verify_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')\n")
    code = "from verl_dra.rewards import check; check('2', '2')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert CheckerError.__name__ in done.stderr
    assert "pip install 'verl_dra[math]'" in done.stderr
