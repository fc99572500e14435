"""The words all rooms share: types, knobs, events, clock, checked values, progress, tenants."""
