"""The policy cliff: optimal values are continuous in the reward, optimal policies are not.

"The Policy Cliff: A Theoretical Analysis of Reward-Policy Maps in Large Language Models", arXiv 2507.20150.

    A*(s; R) = argmax_a Q*_R(s, a)           where it has m > 1 actions, any eps > 0 can leave but one (Prop. 2.4)
    TV(s) = (m - 1) / m                      of the uniform-over-optimal policy, for every eps > 0 (Prop. 2.5)
    TV(s) <= |R - R'| / (2 alpha (1 - gamma))     of the soft-optimal policy (Prop. 4.5)

There is nothing to train with here: the exact analysis is `surefoot.exact.cliff`, the analysis of a run
`surefoot.stability`, both at the command as `surefoot cliff`.
"""

from surefoot.exact.cliff import Cliff, Edge, analyse, stabilise, stability

__all__ = ["Cliff", "Edge", "analyse", "stabilise", "stability"]
