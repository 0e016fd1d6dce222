package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	"github.com/csi-secrets/csi-secrets/pkg/volume"
)

// statusError gives err its gRPC code, as the CSI specification's tables for
// the node service have them. A status that an external provider answered
// keeps its own code.
func statusError(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	for _, known := range []struct {
		err  error
		code codes.Code
	}{
		{volume.ErrPending, codes.Aborted},
		{volume.ErrIncompatible, codes.AlreadyExists},
		{volume.ErrElsewhere, codes.FailedPrecondition},
		{volume.ErrForeign, codes.FailedPrecondition},
		{volume.ErrNotPublished, codes.NotFound},
	} {
		if errors.Is(err, known.err) {
			return known.code
		}
	}
	var answered interface{ GRPCStatus() *status.Status }
	if errors.As(err, &answered) && answered.GRPCStatus().Code() != codes.OK {
		return answered.GRPCStatus().Code()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	switch provider.KindOf(err) {
	case provider.Invalid:
		return codes.InvalidArgument
	case provider.NotFound:
		return codes.NotFound
	case provider.Denied:
		return codes.PermissionDenied
	case provider.Throttled, provider.TooLarge:
		return codes.ResourceExhausted
	case provider.Unavailable:
		return codes.Unavailable
	}
	return codes.Internal
}
