// Command login logs in to a PostgreSQL again and again, each time with the user
// and password that files have just then. It is what an application of the tests
// does in its pod.
package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lib/pq"
)

func main() {
	folder := flag.String("folder", "", "the volume, with the files username and password")
	server := flag.String("server", "", "URL of the server, without user and password")
	every := flag.Duration("every", 100*time.Millisecond, "how often to log in")
	flag.Parse()
	users, failed := map[string]bool{}, 0
	for n := 1; ; n++ {
		began := time.Now()
		user, err := login(*folder, *server)
		users[user] = true
		if err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", began.UTC().Format(time.RFC3339Nano), err)
		}
		if n%10 == 0 {
			fmt.Printf("logins %d failed %d users %d\n", n, failed, len(users))
		}
		time.Sleep(max(0, *every-time.Since(began)))
	}
}

// login reads both files of one set, as applications should: through the link
// that changes in one step.
func login(folder, server string) (user string, err error) {
	for range 10 {
		var set string
		if set, err = filepath.EvalSymlinks(filepath.Join(folder, "..data")); err != nil {
			return "", err
		}
		var name, password []byte
		if name, err = os.ReadFile(filepath.Join(set, "username")); err != nil {
			continue // the set went meanwhile
		}
		if password, err = os.ReadFile(filepath.Join(set, "password")); err != nil {
			continue
		}
		return string(name), connect(server, string(name), string(password))
	}
	return "", err
}

func connect(server, user, password string) error {
	config, err := pq.NewConfig(server)
	if err != nil {
		return err
	}
	config.User, config.Password = user, password
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return db.PingContext(ctx)
}
