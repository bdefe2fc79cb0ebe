"""Whether a Module computes what a torch model does; where the two part, and why."""

from bridge.doctor.report import Report as Report
from bridge.doctor.verifying import verify as verify
