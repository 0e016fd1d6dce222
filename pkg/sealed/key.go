package sealed

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-secrets/csi-secrets/pkg/secret"
)

// KeyBytes is the size of a key.
const KeyBytes = 32

// memoryKeyFile is the file of MemoryKey.
const memoryKeyFile = "sealed.key"

// ReadKey returns the key that a file holds, KeyBytes bytes as they are or in
// base64. It refuses a file that others than its owner may read or write.
func ReadKey(path string) (secret.Value, error) {
	in, err := os.Open(path)
	if err != nil {
		return secret.Value{}, fmt.Errorf("read the key of the sealed cache: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return secret.Value{}, fmt.Errorf("read the key of the sealed cache: %w", err)
	}
	if mode := info.Mode(); mode&0o077 != 0 {
		return secret.Value{}, fmt.Errorf("the key of the sealed cache, %s, may be read or written by others than its owner (%s); chmod it to 0400, in a Secret's volume by defaultMode", path, mode)
	}
	data := make([]byte, 4*KeyBytes)
	n, err := io.ReadFull(in, data)
	defer clear(data)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return secret.Value{}, fmt.Errorf("read the key of the sealed cache: %w", err)
	}
	if n == KeyBytes {
		return secret.New(bytes.Clone(data[:n])), nil
	}
	key := make([]byte, base64.StdEncoding.DecodedLen(len(data)))
	if n, err = base64.StdEncoding.Decode(key, data[:n]); err != nil || n != KeyBytes {
		clear(key)
		return secret.Value{}, fmt.Errorf("the key of the sealed cache, %s, has neither %d bytes nor these in base64; make one with `head -c %d /dev/urandom`", path, KeyBytes, KeyBytes)
	}
	return secret.New(key[:n:n]), nil
}

// MemoryKey returns the random key that a folder in memory holds, which it makes if
// need be: it outlives the driver, and not the machine. It refuses a folder that is
// on a disk.
func MemoryKey(dir string) (secret.Value, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return secret.Value{}, fmt.Errorf("make the folder for the key of the sealed cache: %w", err)
	}
	var on unix.Statfs_t
	if err := unix.Statfs(dir, &on); err != nil {
		return secret.Value{}, fmt.Errorf("look at the folder for the key of the sealed cache: %w", err)
	}
	if on.Type != unix.TMPFS_MAGIC && on.Type != unix.RAMFS_MAGIC {
		return secret.Value{}, fmt.Errorf("the folder for the key of the sealed cache, %s, is not in memory (tmpfs): the key would reach a disk; name a folder that is, or a file with a key", dir)
	}
	path := filepath.Join(dir, memoryKeyFile)
	_, err := os.Lstat(path)
	if err == nil {
		return ReadKey(path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return secret.Value{}, fmt.Errorf("look for the key of the sealed cache: %w", err)
	}
	key := make([]byte, KeyBytes)
	_, _ = rand.Read(key) // it does not fail
	if err = os.WriteFile(path+unfinished, key, 0o600); err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("keep the key of the sealed cache: %w", err)
	}
	return secret.New(key), nil
}
