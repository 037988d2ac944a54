"""Campaigns: accepted messages are delivered, through faults of every kind. Each has a seed and counts its actions.

`python -m chaos` (with `tests` on the path) runs them; docs/RELIABILITY.md describes them and has their results.
"""


class Result:
    """Outcome of a campaign: `figures`, by name, and `problems`, of which there must be none."""

    def __init__(self, name, seed):
        self.name, self.seed = name, seed
        self.figures = {}
        self.problems = []

    def count(self, **figures):
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0) + value

    def expect(self, condition, problem):
        if not condition:
            self.problems.append(problem)
        return condition

    def line(self):
        """One line for people."""
        figures = ", ".join(f"{value:g} {name}" if isinstance(value, float) else f"{value} {name}"
                            for name, value in self.figures.items())
        verdict = "passed" if not self.problems else "FAILED: " + "; ".join(self.problems)[:2000]
        return f"{self.name} (seed {self.seed}): {figures.replace('_', ' ')}: {verdict}"
