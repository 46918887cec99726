"""Any method on any array: see `fewstep.train.students.door`."""

from fewstep.train.students.door import train_student

__all__ = ["train_student"]
