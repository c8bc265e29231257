"""chi-PO: DPO with the link `phi(z) = z + log z`, whose implied regulariser is chi-squared (and KL).

"Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via Chi-Squared Preference
Optimization", arXiv 2407.13399, algorithm 1. With rho = pi/ref of the whole response:

    objective    max E_pi[r] - beta ( D_chi2(pi || ref) + KL(pi || ref) ),     D_chi2 = E_ref[(rho - 1)^2] / 2
    optimum      r = beta phi(rho) + Z(x),    rho = W0(exp((r - Z) / beta))    (`exact.divergence.CHI2_KL`)
    L = -E log sigma( clip_{+-2R}( beta phi(rho_w) - beta phi(rho_l) ) )       R >= max |r|; 1 here
    dL/dl = -+ beta sigma(-d) (1 + rho)     inside the clip, l = log rho; 0 outside

Rewards in a range R move ratios to at most 1 + R/beta, where KL allows e^(R/beta): what a reward learned from little
data overrates cannot be made much of. Numerics (OUR CHOICE): the exponent is held at 20, and above it the slope is 1.
On pairs with rho near 1 the margin is twice DPO's; on responses pushed far down it is DPO's.
"""

from surefoot.method import Paper
from surefoot.methods.preference.dpo import DPO
from surefoot.objective import preferences

CHI_PO = DPO.but(
    name="chi-po",
    paper=Paper(
        arxiv="2407.13399",
        year=2024,
        title="Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via Chi-Squared "
        "Preference Optimization",
    ),
    surrogate=preferences.CHI_PO,
)
