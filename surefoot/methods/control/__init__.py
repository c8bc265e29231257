"""Control: actions that are vectors, in environments that go on."""
