"""Comparison of two sets of named tensors."""

import torch

# What the program may write beyond what the reference holds: of a loss or an update that is off, of a step that changes
# nothing, and what runs of the program are compared by.
OPTIONAL = ("mtp_loss", "balance_loss", "router_bias/", "losses", "adapter/", "weight/")
OPTIONAL += ("frozen_digest", "load", "experts/", "grad_norms")


def relative(actual, expected):
    """|a - b| / |b| in the Frobenius norm; for b = 0 it is |a|, so a zero must be met exactly."""
    actual, expected = actual.double(), expected.double()
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale or 1.0)


def differences(actual, expected, tolerance):
    """Lines that say what is missing, extra, of another shape or further off than `tolerance`; none when all agree."""
    lines = [f"missing: {name}" for name in sorted(expected.keys() - actual.keys())]
    lines += [
        f"not expected: {name}" for name in sorted(actual.keys() - expected.keys()) if not name.startswith(OPTIONAL)
    ]
    for name in sorted(expected.keys() & actual.keys()):
        if actual[name].shape != expected[name].shape:
            lines.append(f"{name}: shape {list(actual[name].shape)}, expected {list(expected[name].shape)}")
        elif not (error := relative(actual[name], expected[name])) <= tolerance:  # also true of NaN
            lines.append(f"{name}: relative difference {error:.2e} > {tolerance:.0e}")
    return lines


def largest(actual, expected):
    """(relative difference, name) of the tensor that differs most."""
    return max((relative(actual[name], expected[name]), name) for name in expected)


def assert_close(test, actual, expected, tolerance):
    """Fails the unittest case `test` with every difference."""
    lines = differences(actual, expected, tolerance)
    if lines:
        test.fail(f"{len(lines)} of {len(expected)} tensors differ:\n" + "\n".join(lines[:40]))
