"What a call opens, where it connects, how long it takes and how much memory: seen by an audit hook."
import os, signal, sys, sysconfig, time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

here, library = Path(__file__).resolve().parent, Path(find_spec('hpa_fastai').origin).parent
devices = ('/dev/null', '/dev/urandom', '/proc/', '/sys/')
own = sorted({os.path.realpath(o) + os.sep for o in [
    library, here, *library.parent.glob('*.egg-info'), sys.prefix, sys.base_prefix,
    *sysconfig.get_paths().values()] if str(o) != '/usr'})
own += [f'/usr/{o}/' for o in ('lib', 'local/lib', 'share')] + ['/lib/', '/etc/ld.so.cache']
state = dict(on=False, folders=(), seen=[])

def _within(path, folders): return any((path + os.sep).startswith(o) for o in folders)

def _judge(event, args):
    "A line about an event that a reader of files has no business with; None for any other"
    if event == 'open':
        path, mode, flags = args
        if not isinstance(path, (str, bytes)): return None
        path = os.path.abspath(os.fsdecode(path))
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(o in (mode or '') for o in 'wa+x')
        if _within(path, state['folders']) or path.startswith(devices): return None
        if writes: return f'writes {path}'
        return None if _within(path, own) else f'reads {path}'
    if event in ('os.mkdir', 'os.remove', 'os.rmdir', 'os.rename', 'os.link', 'os.symlink', 'os.chmod',
                 'os.truncate'):
        paths = [os.path.abspath(os.fsdecode(o)) for o in args[:2] if isinstance(o, (str, bytes))]
        return next((f'{event} {o}' for o in paths if not _within(o, state['folders'])), None)
    if event in ('os.listdir', 'os.scandir'):
        path = args[0]
        if not isinstance(path, (str, bytes)): return None
        path = os.path.abspath(os.fsdecode(path))
        return None if _within(path, [*state['folders'], *own]) or path.startswith(devices) else f'lists {path}'
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto', 'urllib.Request'):
        return f'{event} {args[-1] if event == "socket.connect" else args[:2]}'
    if event in ('subprocess.Popen', 'os.system', 'os.exec', 'os.fork', 'os.forkpty', 'os.posix_spawn'):
        return f'{event} {args[:1]!r:.80}'
    if event == 'pickle.find_class': return f'unpickles {args[0]}.{args[1]}'
    return None

def _hook(event, args):
    if not state['on']: return
    state['on'] = False   # what is done here is not watched
    try:
        line = _judge(event, args)
        if line and line not in state['seen']: state['seen'].append(line)
    finally: state['on'] = True

_hooked = []

@contextmanager
def watched(*folders):
    "Yields a list of what should not happen in a `with` block; what is in `folders` may be read and written"
    if not _hooked: sys.addaudithook(_hook)
    _hooked[:] = [True]
    seen = []
    state.update(on=True, folders=[os.path.abspath(o) + os.sep for o in folders], seen=seen)
    try: yield seen
    finally: state['on'] = False

class TooLong(BaseException): "Raised in a call that takes too much time; no `except Exception` stops it"

@contextmanager
def limited(seconds, wall):
    "Stop a `with` block after some seconds of computing, or of waiting"
    def stop(*_): raise TooLong
    for o in (signal.SIGALRM, signal.SIGPROF): signal.signal(o, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall)
    try: yield
    finally:
        for o in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(o, 0)

def memory(what='VmHWM'):
    "MB of this process: `VmHWM` is the most since `forget_peak`, `VmRSS` what it has now"
    with open('/proc/self/status') as f: return next(int(o.split()[1]) for o in f if o.startswith(what))/1000

def forget_peak():
    "Begin to measure the most memory anew"
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass

def limit_memory(gigabytes):
    "Let this process have no more than some GB beyond what it has"
    import resource
    with open('/proc/self/statm') as f: now = int(f.read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(gigabytes*2**30), resource.RLIM_INFINITY))
