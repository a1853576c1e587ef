package subvolumes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// extra holds the members of a JSON object that this version does not know.
type extra map[string]json.RawMessage

// decodeObject reads a JSON object into the struct that v points to, by the exact
// names of its tags (encoding/json would also take "CURRENT" for "current"), and
// returns the members that are left.
func decodeObject(data []byte, v any) (extra, error) {
	m := extra{}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		key := jsonKey(s.Type().Field(i))
		raw, ok := m[key]
		if key == "" || !ok {
			continue
		}
		delete(m, key)
		if err := json.Unmarshal(raw, s.Field(i).Addr().Interface()); err != nil {
			return nil, fmt.Errorf("%q: %w", key, err)
		}
	}
	if len(m) == 0 {
		return nil, nil
	}
	return m, nil
}

// encodeObject writes the struct v in the order of its fields, then the unknown
// members in the order of their names.
func encodeObject(v any, unknown extra) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	member := func(key string, value any) error {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		k, err := marshal(key)
		if err != nil {
			return err
		}
		raw, err := marshal(value)
		if err != nil {
			return err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(raw)
		return nil
	}
	s := reflect.ValueOf(v)
	for i := range s.NumField() {
		key := jsonKey(s.Type().Field(i))
		if key == "" {
			continue
		}
		field := s.Field(i)
		value := field.Interface()
		if field.Kind() == reflect.Slice && field.IsNil() {
			value = []struct{}{} // "[]", not "null"
		}
		if err := member(key, value); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(unknown)) {
		if err := member(key, unknown[key]); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is json.Marshal that leaves <, > and & of unknown members as they are.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func jsonKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return key
}
