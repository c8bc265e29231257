"""IPO: margins are pulled to a value, so that a sure preference does not send them to infinity.

Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv 2310.12036, eq. 17:

    L = E ( log pi/ref (y_w) - log pi/ref (y_l) - 1 / (2 tau) )^2
"""

from surefoot.method import Paper
from surefoot.methods.preference.dpo import DPO
from surefoot.objective import preferences

IPO = DPO.but(
    name="ipo",
    paper=Paper(
        arxiv="2310.12036",
        year=2023,
        title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    ),
    surrogate=preferences.IPO,
)
