r"""What models are told beside the problem. Prompts are data: a reproduction needs their very words."""

from __future__ import annotations

from dataclasses import dataclass

PROMPTS = ("customary", "paper", "none")


@dataclass(frozen=True)
class Instruction:
    """A system message, and text around the problem in the user's message."""

    system: str | None = None
    before: str = ""
    after: str = ""

    def messages(self, problem: str) -> list[dict[str, str]]:
        """The conversation that veRL's `prompt` column holds."""
        user = {"role": "user", "content": f"{self.before}{problem}{self.after}"}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]


PAPER = Instruction(
    system="A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer, "
    "and put your final answer within \\boxed{{}} . The reasoning process and answer are enclosed within <think> "
    "</think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> "
    "answer here </answer>. Note that respond by English, NOT use other languages."
)
r"""`system_prompt` of recipes/dra_grpo.yaml and dra_dr_grpo.yaml of xiwenc1/DRA-GRPO (commit 0882661, 2025-05-16), word
for word that of recipes/grpo.yaml of knoveleng/open-rs (commit 2889c47, 2025-03-21). Both hand it to the chat template
as it stands, so the model reads `\boxed{{}}` with two pairs of braces. The problem follows alone, as user message."""

HASHES = Instruction(after=' Let\'s think step by step and output the final answer after "####".')
"""veRL's examples/data_preprocess/gsm8k.py (as of commit 63b2ae3); its GSM8K grader looks for the `####`."""

BOXED = Instruction(after=" Let's think step by step and output the final answer within \\boxed{}.")
"""veRL's examples/data_preprocess/math_dataset.py (as of commit 341ecbc)."""

ANSWER_LINE = Instruction(
    before="Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    after='\n\nRemember to put your answer on its own line after "Answer:".',
)
"""What the prompts of BytedTsinghua-SIA/DAPO-Math-17k begin and end with; veRL's grader of `math_dapo` looks for the
`Answer:` line."""

NONE = Instruction()
