"""Teachers: a policy learns from what another one would have said."""
