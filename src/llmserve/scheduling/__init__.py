"""The front scheduler: queue, policies, admission, wait reasons. Pure: no clock, no I/O."""
