"""Whether the discriminator of an adversarial training has won or lost: then its loss guides nobody any more."""

from collections.abc import Mapping
from typing import Literal

from pipeline.reporting import Reporter
from pipeline.training.loop.checkpoint import StepRecord

WON, LOST = 0.97, 0.505  # fractions of patches judged rightly, from which on and down to which
LONG = 20  # this part of the training in a row is said

_IN_WORDS = {
    "won": "it has won, and its loss no longer guides the decoder. If reconstructions get worse, begin anew with a "
    "smaller --adversarial-weight, a smaller --discriminator-rate or a later --adversarial-start; where there are few "
    "images, more of them help, and in stage 1 --flip and --crop random",
    "lost": "no better than chance: the decoder learns nothing from it. If reconstructions are blurred, begin anew "
    "with a larger --discriminator-rate, a smaller --learning-rate, in stage 1 with a larger --hidden, or train "
    "without it: --adversarial-weight 0",
}


class Balance:
    """Says once for each stretch of a twentieth of the steps in which the discriminator is right always, or by chance.

    It takes the metrics `discriminator_accuracy` and `adversarial_ramp`: before the adversarial loss has its full
    weight the discriminator is expected to win.
    """

    def __init__(self, reporter: Reporter, record: StepRecord) -> None:
        self.reporter, self.record = reporter, record
        self.state: Literal["won", "lost"] | None = None
        self.since, self.said = record.step, False

    def watch(self, means: Mapping[str, float], steps: int) -> None:
        """Take the means over the latest `steps`."""
        accuracy, step = means.get("discriminator_accuracy"), self.record.step
        state = None if accuracy is None or means["adversarial_ramp"] < 1 else _state(accuracy)
        if state != self.state:
            self.state, self.since, self.said = state, step - steps, False
        if state is None or self.said or (step - self.since) * LONG < self.record.total_steps:
            return
        self.said = True
        judged = f"the discriminator has judged {100 * (accuracy or 0):.0f} % of patches rightly"
        self.reporter.say(f"step {step:,}: for {step - self.since:,} steps {judged}: {_IN_WORDS[state]}")


def _state(accuracy: float) -> Literal["won", "lost"] | None:
    if accuracy >= WON:
        return "won"
    return "lost" if accuracy <= LOST else None
