package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ArchiveError says that an archive cannot be unpacked because of what it holds.
type ArchiveError struct {
	Entry  string // name in the archive, "" if the archive itself is meant
	Reason string
}

func (e *ArchiveError) Error() string {
	if e.Entry == "" {
		return "tar archive: " + e.Reason
	}
	return fmt.Sprintf("tar archive: entry %q: %s", e.Entry, e.Reason)
}

// Extract unpacks a tar archive, plain or packed by gzip, bzip2, xz or zstd (known
// by its first bytes), into the directory dst. Extended attributes and ACLs are
// taken from PAX records as GNU tar, bsdtar and star write them, owners by number.
// Runs of zeros become holes.
//
// Nothing outside dst can be reached, whatever the archive says: a leading "/" is
// dropped, ".." is refused, and so is a path through a symbolic link. A directory
// that the archive implies but does not list gets mode 0755, owner 0 and time 0, so
// that one archive gives one digest everywhere.
//
// It is not durable on return, and what an error leaves in dst is garbage. Errors:
// *ArchiveError.
func Extract(ctx context.Context, dst *os.File, r io.Reader, o ExtractOptions) (Stats, error) {
	counted := &countReader{ctx: ctx, r: r, p: &progress{fn: o.Progress, total: o.Total}}
	plain, err := unpack(counted)
	if err != nil {
		return Stats{}, err
	}
	defer plain.Close()
	// archive/tar ends without complaint where a block is due and the input is over.
	// A whole archive has two blocks of zeros there.
	end := &endReader{r: plain}
	x := &extractor{
		ctx:   ctx,
		place: newPlacer(dst),
		o:     o,
		buf:   make([]byte, 256<<10),
	}
	defer x.place.close()
	x.place.dirs[""] = impliedDir("")
	tr := tar.NewReader(end)
	for {
		if err := ctx.Err(); err != nil {
			return Stats{}, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // paths are checked below
			return Stats{}, archiveError("", err)
		}
		if err := x.entry(h, tr); err != nil {
			return Stats{}, err
		}
	}
	if end.eof {
		return Stats{}, &ArchiveError{Reason: "it ends before its end mark: it is truncated or no tar archive"}
	}
	// The rest: padding, and the checksum of the compressed stream.
	if _, err := io.Copy(io.Discard, end); err != nil {
		return Stats{}, archiveError("", err)
	}
	if err := x.place.finishDirs(ctx); err != nil {
		return Stats{}, err
	}
	x.stats.Dirs = int64(len(x.place.dirs))
	return x.stats, nil
}

// archiveError tells errors of the archive from those of reading it.
func archiveError(entry string, err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return &ArchiveError{Entry: entry, Reason: "it is damaged or truncated: " + err.Error()}
	}
	return fmt.Errorf("read tar archive: %w", err)
}

func impliedDir(path string) *Entry { return &Entry{Path: path, Mode: unix.S_IFDIR | 0o755} }

type extractor struct {
	ctx   context.Context
	place *placer
	o     ExtractOptions
	buf   []byte
	stats Stats
}

// cleanPath turns a name in the archive into a path below the root.
func cleanPath(name string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", &ArchiveError{name, `a name with ".." leads out of the tree`}
		default:
			if len(part) > 255 {
				return "", &ArchiveError{name, "a name has more than 255 bytes"}
			}
			if strings.IndexByte(part, 0) >= 0 {
				return "", &ArchiveError{name, "a name has a zero byte"}
			}
			parts = append(parts, part)
		}
	}
	path := strings.Join(parts, "/")
	if len(path) > 32<<10 {
		return "", &ArchiveError{name[:64] + "…", "a path has more than 32 KiB"}
	}
	return path, nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	e, err := x.header(h, path)
	if err != nil {
		return err
	}
	if path == "" {
		if e.Mode&unix.S_IFMT != unix.S_IFDIR || e.Link != "" {
			return &ArchiveError{h.Name, "the root of the tree must be a directory"}
		}
		return x.place.make(e)
	}
	if err := x.parents(path); err != nil {
		return err
	}
	isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR && e.Link == ""
	done, err := x.replace(path, isDir)
	if err != nil {
		return err
	}
	if done {
		x.place.dirs[path] = e
		return nil
	}
	switch {
	case e.Link != "":
		err = x.place.link(path, e.Link)
		x.stats.Links++
	case e.Mode&unix.S_IFMT == unix.S_IFREG:
		err = x.file(e, content)
		x.stats.Files++
	default:
		err = x.place.make(e)
		switch e.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFLNK:
			x.stats.Symlinks++
		default:
			x.stats.Others++
		}
	}
	if err != nil {
		if errors.Is(err, unix.ENOENT) && e.Link != "" {
			return &ArchiveError{h.Name, fmt.Sprintf("is a link to %q, which is not in the archive before it", h.Linkname)}
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return &ArchiveError{h.Name, err.Error()}
		}
		var ae *ArchiveError
		if errors.As(err, &ae) {
			return err
		}
		return fmt.Errorf("extract %s: %w", join(x.place.root.Name(), path), err)
	}
	return nil
}

// header translates a tar header.
func (x *extractor) header(h *tar.Header, path string) (*Entry, error) {
	e := &Entry{Path: path, Mode: uint32(h.Mode) & 0o7777, Size: h.Size, Target: h.Linkname}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		e.Mode |= unix.S_IFREG
		if strings.HasSuffix(h.Name, "/") { // before POSIX, directories were files with a slash
			e.Mode = e.Mode&0o7777 | unix.S_IFDIR
		}
	case tar.TypeDir:
		e.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		e.Mode = unix.S_IFLNK | 0o777
		if h.Linkname == "" || len(h.Linkname) >= 4096 || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, &ArchiveError{h.Name, "a symbolic link's target must have 1 to 4095 bytes"}
		}
	case tar.TypeLink:
		e.Mode |= unix.S_IFREG
		target, err := cleanPath(h.Linkname)
		if err != nil {
			return nil, err
		}
		if target == "" {
			return nil, &ArchiveError{h.Name, "is a link to the root of the tree"}
		}
		e.Link = target
		return e, nil
	case tar.TypeFifo:
		e.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		if x.o.NoDevices {
			return nil, &ArchiveError{h.Name, "device nodes are not allowed here"}
		}
		e.Mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			e.Mode = e.Mode&0o7777 | unix.S_IFBLK
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, &ArchiveError{h.Name, fmt.Sprintf("device number %d:%d is out of range", h.Devmajor, h.Devminor)}
		}
		e.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	default:
		return nil, &ArchiveError{h.Name, fmt.Sprintf("has the unknown type %q", h.Typeflag)}
	}
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || int64(id) >= math.MaxUint32 { // the last one means "no change" to chown
			return nil, &ArchiveError{h.Name, fmt.Sprintf("owner number %d is out of range", id)}
		}
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	if !h.ModTime.IsZero() {
		e.Mtime = Time{h.ModTime.Unix(), int32(h.ModTime.Nanosecond())}
	}
	var err error
	e.Xattrs, err = paxXattrs(h)
	return e, err
}

// paxXattrs collects extended attributes and ACLs from PAX records.
func paxXattrs(h *tar.Header) ([]Xattr, error) {
	m := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) { // SCHILY after LIBARCHIVE: it wins
		value := h.PAXRecords[key]
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			m[name] = value
		} else if name, ok := strings.CutPrefix(key, "LIBARCHIVE.xattr."); ok {
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			plain, err2 := url.PathUnescape(name)
			if err != nil || err2 != nil {
				return nil, &ArchiveError{h.Name, fmt.Sprintf("record %q is damaged", key)}
			}
			m[plain] = string(raw)
		}
	}
	for key, name := range map[string]string{
		"SCHILY.acl.access":  "system.posix_acl_access",
		"SCHILY.acl.default": "system.posix_acl_default",
	} {
		text, ok := h.PAXRecords[key]
		if _, raw := m[name]; !ok || raw || text == "" {
			continue
		}
		acl, err := parseACL(text)
		if err != nil {
			return nil, &ArchiveError{h.Name, fmt.Sprintf("record %q: %v", key, err)}
		}
		if acl != nil {
			m[name] = string(acl)
		}
	}
	var out []Xattr
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if len(name) > 255 || strings.IndexByte(name, 0) >= 0 || !strings.Contains(name, ".") || len(m[name]) > xattrMax {
			return nil, &ArchiveError{h.Name, fmt.Sprintf("%q cannot be an extended attribute", name)}
		}
		out = append(out, Xattr{name, []byte(m[name])})
	}
	return out, nil
}

// parents makes the directories above path that the archive has not listed.
func (x *extractor) parents(path string) error {
	for i, c := range []byte(path) {
		if c != '/' {
			continue
		}
		dir := path[:i]
		if _, ok := x.place.dirs[dir]; ok {
			continue
		}
		err := x.place.make(impliedDir(dir))
		if errors.Is(err, unix.EEXIST) {
			return &ArchiveError{path, fmt.Sprintf("its path leads through %q, which is no directory", dir)}
		}
		if err != nil {
			return fmt.Errorf("extract %s: %w", join(x.place.root.Name(), path), err)
		}
	}
	return nil
}

// replace makes room for an entry that an earlier one of the same name has taken, as
// the last one wins in an archive. done tells that a directory is there already.
func (x *extractor) replace(path string, isDir bool) (done bool, err error) {
	if _, ok := x.place.dirs[path]; ok {
		if isDir {
			return true, nil
		}
		return false, &ArchiveError{path, "is there as a directory already"}
	}
	parent, name := splitPath(path)
	dir, err := x.place.dir(parent)
	if err != nil {
		return false, fmt.Errorf("extract %s: %w", join(x.place.root.Name(), path), err)
	}
	old, _, err := lstat(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("extract %s: %w", join(x.place.root.Name(), path), err)
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return false, fmt.Errorf("extract %s: replace the earlier one: %w", join(x.place.root.Name(), path), err)
	}
	switch {
	case old.Nlink > 1:
		x.stats.Links--
	case old.Mode&unix.S_IFMT == unix.S_IFREG:
		x.stats.Files--
		x.stats.Bytes -= old.Size
	case old.Mode&unix.S_IFMT == unix.S_IFLNK:
		x.stats.Symlinks--
	default:
		x.stats.Others--
	}
	return false, nil
}

// file writes a regular file.
func (x *extractor) file(e *Entry, content io.Reader) error {
	fd, err := x.place.create(e.Path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var off int64
	for {
		n, err := io.ReadFull(content, x.buf)
		if n > 0 {
			if x.o.MaxBytes > 0 && x.stats.Bytes+int64(n) > x.o.MaxBytes {
				return &ArchiveError{e.Path, fmt.Sprintf("the content exceeds the limit of %d bytes", x.o.MaxBytes)}
			}
			if err := writeSparse(fd, x.buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
			x.stats.Bytes += int64(n)
		}
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) && off == e.Size {
			break
		}
		if err != nil {
			return archiveError(e.Path, err)
		}
	}
	if off != e.Size {
		return &ArchiveError{e.Path, fmt.Sprintf("it is truncated: %d of %d bytes", off, e.Size)}
	}
	if err := unix.Ftruncate(fd, off); err != nil { // a hole at the end
		return fmt.Errorf("set size: %w", err)
	}
	return setMetadata(fd, "", e)
}

// writeSparse writes b at off but leaves blocks of zeros out.
func writeSparse(fd int, b []byte, off int64) error {
	const block = 4096
	zeros := make([]byte, block)
	for len(b) > 0 {
		n := 0 // data before the next zero block
		for n < len(b) && !bytes.Equal(b[n:min(n+block, len(b))], zeros[:min(block, len(b)-n)]) {
			n = min(n+block, len(b))
		}
		if n > 0 {
			if err := pwriteAll(fd, b[:n], off); err != nil {
				return err
			}
		} else {
			n = min(block, len(b))
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
