"""What a bias does, each answer computed when it is asked for: `fastneuron explain`, docs/bias.md.

A topic is a function that computes its numbers on the backend that "auto" means, in float32.
"""

from __future__ import annotations

from dataclasses import replace

from fastneuron import backends
from fastneuron.explain import as_weight, normalised, prior, regression, shift, training
from fastneuron.explain.explanation import Explanation, Topic
from fastneuron.registry import Registry

__all__ = ["TOPICS", "Explanation", "Topic", "run"]

#: Every topic by name, in the order of the guide.
TOPICS: Registry[Topic] = Registry("topic")
for _name, _title, _compute in (
    ("threshold", "A bias moves the threshold of a neuron", shift.threshold),
    ("hyperplane", "A bias moves the boundary off the origin", shift.hyperplane),
    ("zeros", "An all-zero input: f(0) without a bias, f(b) with one", shift.zeros),
    ("line", "y = 2x + 3, with and without a bias", regression.line),
    ("intercept", "The intercept of least squares, and one for every neuron", regression.intercept),
    ("gradient", "dL/db = delta^T 1: why it is a sum over the batch", as_weight.gradient),
    ("ones", "A bias is the weight of an input that is always 1", as_weight.ones),
    ("saturation", "A saturated neuron's bias stops moving", training.saturation),
    ("symmetry", "All-zero biases train, all-zero weights do not", training.symmetry),
    ("batchnorm", "Batch normalisation makes the bias before it redundant", normalised.batchnorm),
    ("prior", "An output bias that starts at the class frequencies", prior.prior),
):
    TOPICS.register(_name, Topic(_title, _compute))


def run(topic: str, backend: str = "auto") -> Explanation:
    """Compute a topic and return its text, values and figures.

    Parameters
    ----------
    topic : str
        A name of `TOPICS`.
    backend : str

    Raises
    ------
    UnknownNameError
        Where the topic or the backend is in no table; the message lists what exists.
    BackendUnavailable
        Where the backend cannot run here.
    """
    entry = TOPICS[topic]
    name = backends.get(backend).name
    with backends.use(name):
        found = entry.compute()
    return replace(found, topic=topic, title=entry.title, backend=name)
