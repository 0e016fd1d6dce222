# Two static programs and nothing else: the driver, and the launcher that pods
# copy. `make image` builds them for every architecture first; the image holds
# no shell, no library and nothing that its own user could write.
FROM scratch
ARG TARGETOS=linux
ARG TARGETARCH=amd64
LABEL org.opencontainers.image.title="csi-secrets" \
      org.opencontainers.image.description="Secrets into Kubernetes pods: a CSI node driver" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --chown=0:0 --chmod=0555 dist/${TARGETOS}_${TARGETARCH}/csi-secrets dist/${TARGETOS}_${TARGETARCH}/csi-secrets-exec /
# Mounting for pods takes root.
USER 0:0
ENTRYPOINT ["/csi-secrets"]
CMD ["node"]
