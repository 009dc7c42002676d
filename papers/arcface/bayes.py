"""Joint Bayesian verification of embeddings (Chen et al., Bayesian Face Revisited, ECCV 2012). A variant of ours.

An embedding is x = mu + e: mu ~ N(0, B) is the person, e ~ N(0, W) what changes from picture to picture. Two embeddings
are judged by the log likelihood ratio of "one person" to "two people", which weighs directions by what they tell and
also asks how common a face is; the cosine does neither. The embeddings keep their lengths: a short one draws the
ratio towards "cannot say", which helped on held-out people.

Chen et al. estimate B and W by EM. Here the network was trained on the very people they are estimated on, and unseen
people's embeddings are far less tight. So only the *shapes* of B and W are the training people's; how the variance is
divided between them is a setting, chosen on held-out people (protocol "tune").
"""

import numpy as np

from facepapers.common.cli import UserError

SHRINKAGE = 0.1  # share of the identity in both covariances


class JointBayes:
    """B and W from embeddings (N, d) of people `labels` (N,), 0..C - 1; `share` of the variance is B's.

    Raises UserError when nobody has two images: then nothing tells what changes from picture to picture.
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, share: float, shrinkage: float = SHRINKAGE) -> None:
        from scipy import linalg

        labels = np.asarray(labels).astype(np.int64)  # a uint8 of 255 classes has no 256th
        if np.bincount(labels).max() < 2:
            raise UserError("--joint-bayes: nobody in the training part has two images; leave it out for this set")
        x = np.asarray(embeddings, np.float64)
        self.mean = x.mean(0)
        centre = np.zeros((labels.max() + 1, x.shape[1]))
        np.add.at(centre, labels, x)
        centre /= np.bincount(labels)[:, None]
        between, within = (_shape(np.cov(part.T), shrinkage) for part in (centre, x - centre[labels]))
        total = np.trace(np.cov(x.T))
        self.between, self.within = total * share * between, total * (1 - share) * within
        both, d = self.between + self.within, len(self.mean)
        # x1, x2 of one person have the covariance [[both, between], [between, both]], of two people its diagonal.
        one = np.block([[both, self.between], [self.between, both]])
        two = linalg.block_diag(both, both)
        quadratic = (linalg.inv(two) - linalg.inv(one)) / 2
        self.own, self.mutual = quadratic[:d, :d], quadratic[:d, d:]
        self.constant = (np.linalg.slogdet(two)[1] - np.linalg.slogdet(one)[1]) / 2
        self.spread = np.sqrt(2 * np.sum((quadratic @ two) * (quadratic @ two).T))  # of the ratio for two people

    def log_ratio(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """log p(left, right | one person) - log p(left, right | two people), (P,), of embeddings (P, d)."""
        left, right = left - self.mean, right - self.mean
        own = sum(np.einsum("pi,ij,pj->p", x, self.own, x) for x in (left, right))
        return self.constant + own + 2 * np.einsum("pi,ij,pj->p", left, self.mutual, right)

    def distance(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The ratio as a number in [0, 4], small for one person, which the thresholds for squared distances can cut."""
        from scipy.special import expit

        return 4 * expit(-self.log_ratio(left, right) / self.spread)


def _shape(covariance, shrinkage):
    """A covariance of trace 1, drawn towards the identity's."""
    return (1 - shrinkage) * covariance / np.trace(covariance) + shrinkage * np.eye(len(covariance)) / len(covariance)
