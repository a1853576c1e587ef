package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// passwordMax bounds what is read from a password file.
const passwordMax = 1 << 10

// passwordFlags say where a password comes from. It is never an argument: every
// user of the machine can read those.
type passwordFlags struct {
	file string
	fd   int
}

func (p *passwordFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&p.file, "password-file", "", "read the key's password from the first line of this file")
	c.Flags().IntVar(&p.fd, "password-fd", -1, "read the key's password from the first line of this file descriptor")
}

// read returns the password from the file, the descriptor, or the terminal,
// where twice asks a second time to catch typing errors.
func (p *passwordFlags) read(ctx context.Context, prompt string, twice bool) (string, error) {
	switch {
	case p.file != "" && p.fd >= 0:
		return "", usagef("--password-file and --password-fd exclude each other")
	case p.file != "":
		f, err := os.Open(p.file)
		if err != nil {
			return "", usagef("cannot read the password: %v", err)
		}
		defer f.Close()
		return firstLine(f)
	case p.fd >= 0:
		f := os.NewFile(uintptr(p.fd), "password")
		if f == nil {
			return "", usagef("--password-fd %d is not open", p.fd)
		}
		defer f.Close()
		return firstLine(f)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", coded(codeUsage, errors.New("a password is needed, and there is no terminal to ask"),
			"--password-file FILE or --password-fd N")
	}
	defer tty.Close()
	first, err := ask(ctx, tty, prompt)
	if err != nil || !twice {
		return first, err
	}
	second, err := ask(ctx, tty, "once more: ")
	if err == nil && first != second {
		err = usagef("the two passwords differ; nothing was written")
	}
	return first, err
}

func ask(ctx context.Context, tty *os.File, prompt string) (string, error) {
	fmt.Fprint(tty, prompt)
	// A signal must end the question and leave the terminal as it was.
	old, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return "", err
	}
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		b, err := term.ReadPassword(int(tty.Fd()))
		got <- answer{b, err}
	}()
	defer fmt.Fprintln(tty)
	select {
	case a := <-got:
		return string(a.text), a.err
	case <-ctx.Done():
		term.Restore(int(tty.Fd()), old)
		return "", ctx.Err()
	}
}

func firstLine(r io.Reader) (string, error) {
	s, err := bufio.NewReader(io.LimitReader(r, passwordMax+1)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", usagef("cannot read the password: %v", err)
	}
	if len(s) > passwordMax {
		return "", usagef("the password is longer than %d bytes", passwordMax)
	}
	if s = strings.TrimRight(s, "\r\n"); s == "" {
		return "", usagef("the password is empty")
	}
	return s, nil
}
