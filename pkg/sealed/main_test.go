package sealed

import (
	"os"
	"testing"

	"github.com/csi-secrets/csi-secrets/internal/sandbox"
)

// The tests mount: they run in a mount namespace of their own.
func TestMain(m *testing.M) { os.Exit(sandbox.Run(m.Run)) }
