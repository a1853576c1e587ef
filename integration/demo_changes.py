#!/usr/bin/env python3
"""demo_changes.py TREE: turns a copy of a system tree into its next version.

The changes are those that a security update makes: some programs and libraries
differ in a few thousand scattered bytes (other build id, moved addresses) and
grow a little, documents change inside their gzip files, Python caches get new
headers, a versioned directory is renamed, files come and go, thousands of files
are touched without a change.
"""
import gzip, os, random, stat, sys

top = sys.argv[1]
rnd = random.Random(1)
files = []
for d, ds, fs in os.walk(top):
    ds.sort()
    for f in sorted(fs):
        p = os.path.join(d, f)
        st = os.lstat(p)
        if stat.S_ISREG(st.st_mode) and st.st_nlink == 1:
            files.append((p, st))


def rewrite(p, st, data):
    tmp = p + '.demo'
    with open(tmp, 'wb') as f:
        f.write(data)
    os.chown(tmp, st.st_uid, st.st_gid)
    os.chmod(tmp, stat.S_IMODE(st.st_mode))
    os.rename(tmp, p)


n = dict.fromkeys('programs documents caches removed added touched'.split(), 0)
for p, st in files:
    r = rnd.random()
    if not 64 < st.st_size < 8 << 20:
        continue
    with open(p, 'rb') as f:
        magic = f.read(4)
    if magic == b'\x7fELF' and r < 0.05:
        with open(p, 'rb') as f:
            b = bytearray(f.read())
        for _ in range(len(b) // 2000):
            i = rnd.randrange(64, len(b) - 4)
            b[i:i + 4] = ((int.from_bytes(b[i:i + 4], 'little') + 0x40) & 0xffffffff).to_bytes(4, 'little')
        cut = len(b) // 3
        b[cut:cut] = bytes(rnd.randrange(256) for _ in range(64))
        rewrite(p, st, bytes(b))
        n['programs'] += 1
    elif magic[:2] == b'\x1f\x8b' and r < 0.3 and st.st_size < 1 << 20:
        try:
            text = gzip.open(p).read()
        except OSError:
            continue
        rewrite(p, st, gzip.compress(b'demo (2) stable; urgency=high\n\n' + text, 9, mtime=0))
        n['documents'] += 1
    elif p.endswith('.pyc') and r < 0.5:
        with open(p, 'rb') as f:
            b = bytearray(f.read())
        b[8:12] = rnd.randbytes(4)
        rewrite(p, st, bytes(b))
        n['caches'] += 1
    elif '/share/doc/' in p and r < 0.05:
        os.unlink(p)
        n['removed'] += 1
    elif r < 0.1:
        os.utime(p, ns=(st.st_atime_ns, st.st_mtime_ns + 86400 * 10**9))
        n['touched'] += 1
for i in range(50):
    with open(os.path.join(top, 'usr/share/demo-%02d' % i), 'wb') as f:
        f.write(b'a file of version 2, number %d\n' % i * 50)
    n['added'] += 1
for d in sorted(os.listdir(os.path.join(top, 'usr/lib'))):
    p = os.path.join(top, 'usr/lib', d)
    if d.startswith('python3') and os.path.isdir(p) and not os.path.islink(p):
        sub = os.path.join(p, 'email')
        if os.path.isdir(sub):
            os.rename(sub, os.path.join(p, 'email-2'))
print('  ' + ', '.join('%s: %d' % kv for kv in n.items()))
