package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// configPath is the machine's configuration; BTROVL_CONFIG names another file.
const configPath = "/etc/btrovl/config.toml"

// configMax bounds the file: a configuration is small.
const configMax = 64 << 10

// config is what /etc/btrovl/config.toml may hold. All of it is optional.
//
//	pool = "/btrovl"                         # the pool of this machine
//	trusted = ["/etc/btrovl/trusted.d"]      # directories of NAME.pub and ID.revoked besides the pool's
//	tries = 3                                # boots that an update has to prove itself
//	log-level = "info"                       # debug, info, warn or error
type config struct {
	Pool     string   `toml:"pool"`
	Trusted  []string `toml:"trusted"`
	Tries    int      `toml:"tries"`
	LogLevel string   `toml:"log-level"`
}

func defaultConfig() config {
	return config{
		Trusted:  []string{"/etc/btrovl/trusted.d"},
		Tries:    3,
		LogLevel: "info",
	}
}

// loadConfig reads the file; one that does not exist is an empty one.
func loadConfig(path string) (config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return defaultConfig(), nil
	}
	if err != nil {
		return config{}, usagef("cannot read the configuration: %v", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, configMax+1))
	if err != nil {
		return config{}, usagef("cannot read the configuration: %v", err)
	}
	c, err := parseConfig(b)
	if err != nil {
		return config{}, usagef("%s: %v", path, err)
	}
	return c, nil
}

func parseConfig(b []byte) (config, error) {
	c := defaultConfig()
	if len(b) > configMax {
		return config{}, fmt.Errorf("longer than %d bytes", configMax)
	}
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&c)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return config{}, fmt.Errorf("line %d: unknown key %q (known: pool, trusted, tries, log-level)",
			row, strings.Join(strict.Errors[0].Key(), "."))
	}
	if err != nil {
		return config{}, err
	}
	if c.Pool != "" && !filepath.IsAbs(c.Pool) {
		return config{}, fmt.Errorf("pool = %q is not an absolute path", c.Pool)
	}
	for _, d := range c.Trusted {
		if !filepath.IsAbs(d) {
			return config{}, fmt.Errorf("%q is not an absolute path", d)
		}
	}
	if c.Tries < 1 || c.Tries > 100 {
		return config{}, fmt.Errorf("tries = %d is not between 1 and 100", c.Tries)
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		return config{}, err
	}
	return c, nil
}
