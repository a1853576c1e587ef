package tree

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// Tags of struct posix_acl_xattr_entry (linux/posix_acl_xattr.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// parseACL turns the text that tar archives carry ("user::rw-,user:joe:r--:1000,…",
// entries parted by commas or new lines, the number in a fourth field optional) into
// the value of system.posix_acl_access or …_default: a u32 version 2, then
// {u16 tag, u16 permissions, u32 id} per entry. Names without a number are looked
// up on this machine. It returns nil if the text is empty.
func parseACL(text string) ([]byte, error) {
	var entries []aclEntry
	for field := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		field, _, _ = strings.Cut(field, "#") // getfacl's "#effective:"
		field = strings.TrimSpace(field)
		if field == "" {
			continue
		}
		e, err := parseACLEntry(field)
		if err != nil {
			return nil, fmt.Errorf("ACL entry %q: %w", field, err)
		}
		entries = append(entries, e)
		if len(entries) > 4096 {
			return nil, fmt.Errorf("ACL of more than 4096 entries")
		}
	}
	if len(entries) == 0 {
		return nil, nil
	}
	// The kernel wants them in the order of tags and ids.
	slices.SortFunc(entries, func(a, b aclEntry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id))
	})
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out, nil
}

func parseACLEntry(field string) (aclEntry, error) {
	parts := strings.Split(field, ":")
	if len(parts) == 2 && (parts[0] == "other" || parts[0] == "o" || parts[0] == "mask" || parts[0] == "m") {
		parts = []string{parts[0], "", parts[1]} // "other:r--"
	}
	if len(parts) != 3 && len(parts) != 4 {
		return aclEntry{}, fmt.Errorf("it has %d fields", len(parts))
	}
	e := aclEntry{id: math.MaxUint32} // ACL_UNDEFINED_ID
	named := parts[1] != ""
	switch parts[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, fmt.Errorf("unknown kind %q", parts[0])
	}
	if named {
		number := parts[1]
		if len(parts) == 4 {
			number = parts[3]
		}
		id, err := aclID(e.tag, number)
		if err != nil {
			return aclEntry{}, err
		}
		e.id = id
	}
	for _, c := range parts[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return aclEntry{}, fmt.Errorf("unknown permission %q", c)
		}
	}
	return e, nil
}

// aclID returns the number of a user or group.
func aclID(tag uint16, name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	var number string
	if tag == aclUser {
		u, err := user.Lookup(name)
		if err != nil {
			return 0, err
		}
		number = u.Uid
	} else {
		g, err := user.LookupGroup(name)
		if err != nil {
			return 0, err
		}
		number = g.Gid
	}
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), err
}
