"""Campaigns: what is accepted is delivered, whatever happens meanwhile. Each has a seed and counts what it saw.

`python -m chaos` (with `tests` on the path) runs them; docs/RELIABILITY.md says what each does and what came of it.
"""


class Result:
    """What a campaign saw: `figures`, by name, and `problems`, of which there must be none."""

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
        """For people: one line."""
        figures = ", ".join(f"{value:g} {name}" if isinstance(value, float) else f"{value} {name}"
                            for name, value in self.figures.items())
        verdict = "passed" if not self.problems else "FAILED: " + "; ".join(self.problems)[:2000]
        return f"{self.name} (seed {self.seed}): {figures.replace('_', ' ')}: {verdict}"
