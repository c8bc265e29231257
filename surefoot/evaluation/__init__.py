"""How good a policy is, how sure one can be of it, and which differences are real."""
