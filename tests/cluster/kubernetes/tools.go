//go:build tools

// Package kubernetes pins the Kubernetes programs that the cluster tests run. It is a Go module of its own: nothing of it
// is part of Aquifer, and its hundreds of dependencies stay out of every other build.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
