# btrovl. `make help` lists the targets.
#
# Everything that a target needs from Debian is installed by integration/deps.sh
# (as root, on a fresh machine); nothing else is prepared by hand.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BUILD    = build
export CGO_ENABLED = 0
export GOFLAGS ?=

# Tests that need root, /dev/fuse or btrfs fail instead of skipping when root.
ifeq ($(shell id -u),0)
TESTENV = BTROVL_TEST_ALL=1
endif
# One package at a time (the crash tests take down disks that mkfs elsewhere looks
# at), and the most that one may take.
TESTFLAGS ?= -p 1 -timeout 10m

.PHONY: help build demo test test-race test-crash test-posix test-memory test-boot bench-view bench-delta bench-bsdiff fuzz cross vet install clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: ## build/btrovl, one static binary
	@integration/deps.sh build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/btrovl ./cmd/btrovl

demo: build ## the whole idea on a real system tree, in a loop image below build/ (DEMO=debian: two package states of Debian)
	@integration/deps.sh demo
	@integration/demo.sh $(DEMO)

test: vet ## every test that needs no virtual machine (as root: nothing is skipped)
	@integration/deps.sh test
	@mkdir -p $(BUILD)
	$(TESTENV) BTROVL_BENCH_TABLE='$(CURDIR)/$(BUILD)/bench-view-small.md' $(GO) tool gotestsum --format pkgname -- $(TESTFLAGS) ./...

test-race: ## the same under the race detector (needs a C compiler)
	@integration/deps.sh test
	CGO_ENABLED=1 $(TESTENV) $(GO) test -race -p 1 -timeout 30m ./...

test-crash: ## at least 2,000 crash states of every command that changes a pool; kills, faults, full disks
	@integration/deps.sh test
	BTROVL_CRASH_STATES=2000 $(TESTENV) $(GO) test -count=1 -timeout 60m -v -run 'Crash|Kill|Fault|Full' ./integration/crashtest

test-posix: ## the long differential and posix runs of the view
	@integration/deps.sh test
	BTROVL_LONG=1 $(TESTENV) $(GO) test -count=1 -timeout 60m -v ./integration/viewtest

test-memory: ## an update with a file of 3 GiB in the memory that its manifest states (minutes, 16 GiB of disk)
	@integration/deps.sh test
	BTROVL_MEMORY=1 $(TESTENV) $(GO) test -count=1 -timeout 60m -v -run Memory ./integration/trusttest

test-boot: build ## boots a machine (QEMU) whose root is a view, and pulls its plug
	@integration/deps.sh boot
	BTROVL_BOOT=1 $(TESTENV) $(GO) test -count=1 -timeout 60m -v -run Boot ./integration/...

BENCHVIEW ?= -debian
bench-view: build ## the view beside kernel overlayfs, btrfs and fuse-overlayfs (BENCHVIEW="-rounds 5 -only git")
	@integration/deps.sh bench
	$(GO) run ./integration/benchview $(BENCHVIEW)

bench-delta: build ## bundles beside btrfs send, ostree, zstd --patch-from, bsdiff (PAIRS="P3 P1 P4")
	@integration/deps.sh bench
	integration/bench-delta.sh $(PAIRS)

FUZZTIME ?= 60s
fuzz: ## every fuzz target for FUZZTIME (FUZZ=pattern picks some)
	@GO='$(GO)' FUZZTIME=$(FUZZTIME) integration/fuzz.sh $(FUZZ)

cross: ## static binaries for amd64, arm64 and ARMv6
	GOARCH=amd64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/btrovl-amd64 ./cmd/btrovl
	GOARCH=arm64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/btrovl-arm64 ./cmd/btrovl
	integration/go-fuse-32bit.sh $(BUILD)/go-fuse-32bit
	GOARCH=arm GOARM=6 $(GO) build -modfile $(BUILD)/go-fuse-32bit/go.mod -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/btrovl-armv6 ./cmd/btrovl

vet:
	@integration/deps.sh build
	@test -z "$$(gofmt -l cmd delta fusefs integration overlay reset subvolumes)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./...

PREFIX ?= /usr/local
install: build ## the binary, units, hooks and helper (DESTDIR and PREFIX are honoured)
	integration/install.sh $(BUILD)/btrovl "$(DESTDIR)" "$(PREFIX)"

clean:
	rm -rf $(BUILD)
