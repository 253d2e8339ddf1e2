"""Faults injected into a process before it runs the command: Python source, filled in by ``str.format``."""

BAD_LOSSES = """
from ditlab.train.tasks import DiffusionTask
loss, step = DiffusionTask.loss, -1
def bad(self, module, *arguments):
    global step
    if not module.training:  # the average, for the held-out loss
        return loss(self, module, *arguments)
    step += 1
    return loss(self, module, *arguments) * float(({factor})(step))
DiffusionTask.loss = bad
"""
BLOCKED_READ = """
import threading
from ditlab.train.tasks import DiffusionTask
read, left = DiffusionTask.read, 45
def blocked(self, *arguments):
    global left
    left -= 1
    if not left:
        threading.Event().wait()
    return read(self, *arguments)
DiffusionTask.read = blocked
"""
CLOCK_SET_BACK = """
import os, time
clock, clock_ns, calls, file = time.time, time.time_ns, [0, 0], os.open({counts!r}, os.O_WRONLY | os.O_CREAT)
def back():
    late = os.path.isdir({when!r})
    calls[late] += 1
    os.pwrite(file, b"%12d %12d" % tuple(calls), 0)
    return 86400 * late
time.time = lambda: clock() - back()
time.time_ns = lambda: clock_ns() - back() * 10**9
"""
SIGNAL_AT_RENAME = """
import os, signal
left = {number}
def killing(call):
    def patched(source, target, *arguments, **more):
        global left
        left -= {name!r} in str(target)
        if left == 0 and {before}:
            os.kill(os.getpid(), signal.{signal})
        result = call(source, target, *arguments, **more)
        if left == 0:
            os.kill(os.getpid(), signal.{signal})
        return result
    return patched
os.replace, os.rename = killing(os.replace), killing(os.rename)
"""
FILE_SIZE_LIMIT = """
import resource
from ditlab.train.checkpoint import Checkpoints
write = Checkpoints._write
def limited(*arguments):
    write(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
Checkpoints._write = limited
"""
