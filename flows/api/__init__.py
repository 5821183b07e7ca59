"""The public Python API: what the names of `sdsearch` do, read-only beside a run that works.

`import sdsearch` is what people write; `sdsearch.NAME` is loaded from here when it is first asked for, so that reading
a workspace loads no torch. Types that the functions return: `flows.api.workspace` (Workspace, Run),
`flows.api.iteration` (Iteration, Records), `flows.api.policy` (Policy), `flows.api.method` (Teacher, Loss).
"""
