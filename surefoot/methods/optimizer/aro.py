"""ARO: normalised descent in a rotated frame that one QR a step refreshes; here as the optimizer of GRPO.

"ARO: A New Lens On Matrix Optimization For Large Models", arXiv 2602.09006. For a matrix W [m n] with gradient G, a
base map f (rows to unit size, signs, Sinkhorn) and an orthogonal R [m m], R = I at first, float32:

    M  = beta M + (1 - beta) G
    R' = Q of QR(M f(R^T M)^T)
    U  = R' f(R'^T M),   R = R'
    W  = (1 - lr decay) W - lr .2 U / rms(U)

R = I kept is plain normalised descent. With rows as f and R the left singular vectors U is Muon's polar factor, times
sqrt(n), and while M stands still the rotation is orthogonal iteration on M M^T, which drifts there. Of all frames that
is the one where <M, U>, by which the loss falls to first order, is least. The smaller side comes first (tall matrices
are transposed).

OUR READING: every step has root mean square .2 lr, AdamW's in practice, for any f. Embeddings, heads, norms and biases
go by AdamW with the same rate.
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.optimizers import Aro

ARO = GRPO.but(
    name="aro",
    paper=Paper(arxiv="2602.09006", year=2026, title="ARO: A New Lens On Matrix Optimization For Large Models"),
    update=Update(optimizer=Aro()),
)
