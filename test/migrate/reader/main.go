// The command reader reads the files of a folder all the time, and ends with a
// failure at the first that it cannot read or that is empty. It prints each new
// value of the first file in a line of its own.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: reader FOLDER FILE...")
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM)
	var last string
	for {
		for i, name := range os.Args[2:] {
			value, err := read(filepath.Join(os.Args[1], name))
			if err != nil {
				log.Fatal(err)
			}
			if i == 0 && value != last {
				last = value
				fmt.Println(value)
			}
		}
		select {
		case <-stopped:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// read reads a file as every program must that reads a Kubernetes volume: the
// set of files may be switched between two names of the path, and is then there
// under the same path.
func read(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(path)
	}
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return string(text), err
}
