"""Evaluation suites: what was found to go wrong, as something that can be measured again."""
