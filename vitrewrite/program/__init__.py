"""A captured model as data: its graphs and modules in JSON, without any code.

What is read is checked against lists of what there may be (functions of torch, layers of torch.nn,
names), so that the file of somebody else can do nothing but compute.
"""

from .reading import read_program as read_program
from .values import ProgramError as ProgramError
from .writing import Program as Program
from .writing import write_program as write_program
