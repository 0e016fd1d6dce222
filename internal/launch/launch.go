// Package launch is the command that starts a program with files as its
// environment variables: csi-secrets-exec. It reads the files of mounted volumes,
// adds a variable for each to its own environment, and has the program take its
// place (execve). That is the same process then, which gets its own signals and
// has its own exit status, and nothing of the launcher is left.
//
// The package uses the standard library alone, so that the program in which it is
// copied into pods is small.
package launch

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// Exit statuses of a launcher that started nothing, as env(1) has them.
const (
	statusFailed    = 125
	statusCannotRun = 126 // POSIX shells: found, and not executable
	statusNotFound  = 127 // POSIX shells
)

const usage = `Usage:
  %[1]s [flags] -- PROGRAM [ARGS...]
  %[1]s --copy-to DIR

Start PROGRAM with files as its environment variables. The files of a volume in
the layout of Kubernetes (..data) are all of one version. PROGRAM takes the place
of this process: it has its process id, gets its signals, and its exit status is
seen. Changes of the files after that do not reach its variables.

Flags:
  --from DIR        make each regular file below DIR a variable: its path in upper
                    case, with _ for all but ASCII letters, digits and _, and
                    before a leading digit; may be repeated
  --env NAME=FILE   make one file the variable NAME; may be repeated
  --env-from FILE   take the variables of a file of KEY=value lines, or of a JSON
                    object of strings, numbers and booleans; may be repeated
  --prefix P        put P before the names that --from and --env-from make
  --keep-newline    keep the newline at the end of a file, which is cut otherwise
  --override        let files win over variables that the container has already;
                    without it, another value is an error
  --optional        go on without folders and files that are missing
  --wait D          wait so long for those that are missing, such as 30s
  --copy-to DIR     copy this program into DIR, mode 0555, and end

The exit status is 127 if PROGRAM is not found, 126 if it cannot be run, 125 if
anything else fails before it has started, and its own otherwise.
`

// config is a command line.
type config struct {
	sources     []source
	prefix      string
	keepNewline bool
	override    bool
	optional    bool
	wait        time.Duration
	copyTo      string
	program     []string // with its arguments
}

// source is a folder or a file that a flag names.
type source struct {
	kind sourceKind
	name string // of the variable, for singleFile
	path string
}

type sourceKind int

const (
	folder     sourceKind = iota // --from
	singleFile                   // --env
	envFile                      // --env-from
)

// Command runs the command line args, of the program called name. environ is the
// environment to which it adds. It returns the exit status if no program has
// taken its place, and has written to stderr why not.
func Command(name string, args, environ []string, stdout, stderr io.Writer) int {
	c, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintf(stdout, usage, name)
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "%s: %v\nsee %s --help\n", name, err, name)
		return statusFailed
	case c.copyTo != "":
		if err = copyTo(c.copyTo); err == nil {
			return 0
		}
	default:
		err = c.start(environ)
	}
	_, _ = fmt.Fprintf(stderr, "%s: %v\n", name, err)
	var failed *execError
	if errors.As(err, &failed) {
		return failed.status
	}
	return statusFailed
}

// flags returns the flags that set c.
func (c *config) flags() *flag.FlagSet {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("from", "", func(text string) error { return c.addSource(folder, "", text) })
	flags.Func("env", "", func(text string) error {
		name, path, ok := strings.Cut(text, "=")
		if !ok || !validName(name) {
			return errors.New("write NAME=FILE, with a name of letters, digits and _ . - that begins with no digit")
		}
		return c.addSource(singleFile, name, path)
	})
	flags.Func("env-from", "", func(text string) error { return c.addSource(envFile, "", text) })
	flags.StringVar(&c.prefix, "prefix", "", "")
	flags.BoolVar(&c.keepNewline, "keep-newline", false, "")
	flags.BoolVar(&c.override, "override", false, "")
	flags.BoolVar(&c.optional, "optional", false, "")
	flags.DurationVar(&c.wait, "wait", 0, "")
	flags.StringVar(&c.copyTo, "copy-to", "", "")
	return flags
}

func (c *config) addSource(kind sourceKind, name, path string) error {
	if path == "" {
		return errors.New("it names no file or folder")
	}
	c.sources = append(c.sources, source{kind, name, path})
	return nil
}

func parse(args []string) (*config, error) {
	var c config
	flags := c.flags()
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	c.program = flags.Args()
	switch {
	case c.copyTo != "" && flags.NFlag()+flags.NArg() > 1:
		return nil, errors.New("--copy-to goes with no other flag and no program")
	case c.copyTo != "":
	case c.prefix != "" && !validName(c.prefix):
		return nil, fmt.Errorf("--prefix %q: write letters, digits and _ . - with no digit first", c.prefix)
	case c.wait < 0:
		return nil, errors.New("--wait must not be negative")
	case len(c.sources) == 0:
		return nil, errors.New("no files are named; say --from, --env or --env-from")
	case len(c.program) == 0 || c.program[0] == "":
		return nil, errors.New("no program is named; write it after --")
	}
	return &c, nil
}
