"""What each of our metrics means. A metric of a step has its name here, and the reference is made of this table."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "dra/smi/mean": "Mean SMI of a completion with the rest of its group; with `dra.among=correct`, of the right ones.",
    "dra/weight/mean": (
        "Mean of the factors that rewards are multiplied by: 1 / (1 + SMI), or what `dra.weight` says, to the "
        "power of `dra/strength`. With `dra.among=correct` the 1 of the others is among them."
    ),
    "dra/weight/min": "The least of those factors.",
    "dra/strength": "`dra.strength` of the step. At 0 DRA is off, and the metrics of similarity are left out.",
    "dra/adjusted_frac": (
        "Share of completions that a weight acts on: all, the right ones with `dra.among=correct`, none where DRA "
        "is off."
    ),
    "dra/cosine/p10": (
        "10th percentile of the cosines of siblings, over groups of 16,384 pairs in all; of centered vectors with "
        "`dra.cosine=centered`."
    ),
    "dra/cosine/p50": "Their median.",
    "dra/cosine/p90": "Their 90th percentile.",
    "dra/cosine/within/p10": (
        "10th percentile of the cosines of pairs that `dra.cluster_cosine` links. This one and the five below are "
        "absent where there are no such pairs."
    ),
    "dra/cosine/within/p50": "Their median.",
    "dra/cosine/within/p90": "Their 90th percentile.",
    "dra/cosine/across/p10": "10th percentile of the cosines of pairs that `dra.cluster_cosine` does not link.",
    "dra/cosine/across/p50": "Their median.",
    "dra/cosine/across/p90": "Their 90th percentile.",
    "dra/effective_paths": "Vendi score: the effective number of different completions in a group, mean over groups.",
    "dra/duplicates_frac": "Share of completions with a sibling of a cosine above 0.99.",
    "dra/correct_negative_adv_frac": (
        "Share of completions with a negative advantage among those with a reward above 0."
    ),
    "dra/zero_std_frac/raw": "Share of groups whose rewards are all equal before the adjustment.",
    "dra/zero_std_frac/adjusted": (
        "Share of groups whose rewards are all equal after the adjustment: they teach nothing."
    ),
    "dra/zero_std_frac/weight": "Share of groups whose weights are all equal.",
    "dra/missing_rows": (
        "Completions whose text their scorer did not have when the rows of the step were final. They are fetched then."
    ),
    "dra/fallbacks": "Times that a scorer lacked something or was lost, and was asked again.",
    "dra/unadjusted_groups": (
        "Groups without scores (`dra.on_failure=unadjusted`). Their rewards get the mean weight of the batch's "
        "scored ones, so that their gradient is as large; the metrics of SMI and of weights leave them out. With "
        "`dra.partition.by`, also groups of which nothing could be told. 0 "
        "with `dra.weight=unlikeliness`, which needs no scores."
    ),
    "dra/refused_rows": (
        "Completions that reward workers kept back because a scorer's queue was full. They are fetched later."
    ),
    "dra/unsent_rows": "Completions that could not be sent because a scorer was not there. They are fetched later.",
    "dra/filtered_groups": (
        "With `algorithm.filter_groups`: groups that veRL's filter dropped although all their completions have "
        "the same metric above 0, such as groups that are all right."
    ),
    "dra/skipped_rows": (
        "Completions that reward workers do not send: of validation, those generated for a step of strength 0, and all "
        "with `dra.text=assistant`, which are fetched later. No fault."
    ),
    "dra/late_rows": "Completions that came after their vector was taken, or given up. They are dropped.",
    "dra/evicted_rows": "Completions that were dropped uncollected to bound memory.",
    "dra/empty_rows": "Completions with a zero vector, such as those without tokens. They count as unique.",
    "dra/replaced_rows": "Completions with lone surrogates, which are embedded as question marks.",
    "dra/cached_frac": "Share of completions whose text their scorer knew, so that they needed no embedding.",
    "dra/truncated_tokens_frac": "Share of tokens that no window of the encoder saw.",
    "dra/unknown_tokens_frac": (
        "Share of tokens that the encoder has no token for. Texts that differ in those alone are equal to it. "
        "Above a fifth at the first step, the run says so."
    ),
    "dra/scorers/tokens_per_s": "Tokens a second that all scorers embed together while they work.",
    "dra/scorers/backlog_bytes": (
        "Bytes of texts that waited for the encoders, or were in them, when the rows of the step were final."
    ),
    "dra/scorers/busy_frac": (
        "Share of the time since the step before in which the encoders worked. Near 1 they are the bottleneck; a "
        "line after the first step says so, and another where it changes."
    ),
    "dra/partition/calls": (
        "Requests to a server about the groups of the step. This one and the ten below are there with "
        "`dra.partition.by`."
    ),
    "dra/partition/tokens": "Tokens of those, as the server counts them; 0 where it does not.",
    "dra/partition/seconds": "Seconds that all actors together looked at groups.",
    "dra/partition/ways": (
        "Ways of a group, mean over groups: completions go the same way that a chain of similarities above a half "
        "links. Not there where no group has two that are compared."
    ),
    "dra/partition/unreadable_groups": "Groups of which a server's answers could not be read. They are unadjusted.",
    "dra/partition/unasked_groups": "Groups that `dra.partition.max_calls` left out. They go by `dra.on_failure`.",
    "dra/partition/truncated_rows": "Completions whose middle was left out, as they are too long.",
    "dra/partition/unplaced_rows": (
        "Completions of which it can't be told, such as those without an answer. With `answers` each is alone; with "
        "`judge` they are one way."
    ),
    "dra/partition/retried": "Answers of a server that could not be read, and were asked for again.",
    "dra/partition/fallbacks": "Times that an actor was lost or a server away, and a group was sent again.",
    "dra/partition/wait_s": "Seconds that the step waited for its groups to be told apart.",
    "timing_s/dra_wait": "Seconds that the step waited for vectors and made scores of them.",
    "timing_s/dra_record": (
        "Seconds that the step spent on records. This one and the three below are there where `dra.record` is on."
    ),
    "dra/recorded_groups": "Groups whose records came onto the disk since the step before.",
    "dra/unrecorded_groups": "Groups whose records could not be written, or were dropped because the disk is slow.",
    "dra/thinned_groups": "Recorded groups that were deleted to keep `dra.record.max_bytes`.",
}
