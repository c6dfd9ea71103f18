# For people with docker; `make image` needs none, and is what releases are made with. Both hold the same program.
#   docker buildx build --platform linux/amd64,linux/arm64 --tag vmcp-session:dev .
#
# The base is named by a tag, which its maker can move, so nothing that is released is built on it. Who wants it fixed writes
# rust:1.95-bookworm@sha256:DIGEST with what `docker buildx imagetools inspect rust:1.95-bookworm` prints; Dependabot then keeps both
# up to date.
FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /build
COPY . .
ARG TARGETARCH
RUN install -D "$(bash hack/static.sh "$TARGETARCH" vmcp-session-operator vmcp-session)" /out/vmcp-session

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY hack/image/passwd hack/image/group /etc/
COPY --from=build /out/vmcp-session /usr/local/bin/
ENV PATH=/usr/local/bin
USER 65534:65534
ENTRYPOINT ["/usr/local/bin/vmcp-session"]
