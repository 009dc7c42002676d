"""The rows of the table."""

ROWS = {
    "ce": "cross-entropy, one network",
    "ce_two": "cross-entropy, two networks",
    "own": "own weights",
    "swapped": "swapped weights",
    "resup": "ReSup: swapped weights, consistency",
    "loss_mixture": "ReSup with a mixture over losses",
    "coteaching": "Co-teaching",
    "oracle": "weights by the true flips (no method)",
    "ce_plus": "cross-entropy, averaging, consistency (ours)",
    "resup_plus": "our first variant of ReSup",
    "resup_bayes": "ReSup with Bayes' rule in place of the mixture (ours)",
    "bayes": "our second variant: Bayes' rule",
}
