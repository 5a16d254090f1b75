"""What `fastneuron explain` does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from fastneuron import backends, plots
from fastneuron.explain import TOPICS, run
from fastneuron.files import write_atomically

__all__ = ["report"]


def report(topic: str | None, figures: str | None, backend: str, as_json: bool) -> None:
    """Print a topic, "all" of them, or their list; write their figures to the folder `figures`."""
    if topic is None and figures is None:
        _list(as_json)
        return
    folder = None if figures is None else Path(figures)
    if folder is not None:  # what cannot be written is said before anything is computed
        plots.require()
        folder.mkdir(parents=True, exist_ok=True)
    name = backends.get(backend).name
    found: dict[str, Any] = {}
    for i, key in enumerate(TOPICS if topic in (None, "all") else [str(topic)]):
        explanation = run(key, name)
        written = []
        if folder is not None:
            for stem, figure in explanation.figures().items():
                image = io.BytesIO()
                figure.savefig(image, format="png")
                write_atomically(folder / f"{stem}.png", image.getvalue())
                written.append(str(folder / f"{stem}.png"))
        found[key] = {
            "title": explanation.title,
            "backend": explanation.backend,
            "values": explanation.values,
            "figures": written,
        }
        if not as_json:
            if i:
                print()
            print(explanation.title, "-" * len(explanation.title), *explanation.lines, sep="\n")
            for path in written:
                print(f"figure written to {path}")
    if as_json:
        print(json.dumps(found, indent=2))


def _list(as_json: bool) -> None:
    titles = {name: topic.title for name, topic in TOPICS.items()}
    if as_json:
        print(json.dumps(titles, indent=2))
        return
    print("fastneuron explain TOPIC, where TOPIC is one of these, or all:")
    for name, title in titles.items():
        print(f"  {name:12}{title}")
