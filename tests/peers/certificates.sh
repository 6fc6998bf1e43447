# Certificates of a control plane on loopback: two authorities (the cluster's, the front proxy's), what its programs
# serve with, and what they and kubectl identify themselves with. Run in an empty directory; $1 is the port of
# kube-apiserver.
set -eu

authority() { # name, common name
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
    openssl req -x509 -new -key "$1.key" -subj "/CN=$2" -days 2 -out "$1.crt" -addext keyUsage=critical,keyCertSign,cRLSign
}
leaf() { # name, authority, subject, usage, alternative names
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
    openssl req -new -key "$1.key" -subj "$3" -out "$1.csr"
    {
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=$4"
        [ -z "${5:-}" ] || echo "subjectAltName=$5"
    } >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 2 -extfile "$1.ext" -out "$1.crt"
}
kubeconfig() { # name, certificate
    cat >"$1.kubeconfig" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$port", certificate-authority: $PWD/cluster.crt}}]
users: [{name: user, user: {client-certificate: $PWD/$2.crt, client-key: $PWD/$2.key}}]
contexts: [{name: test, context: {cluster: test, user: user}}]
current-context: test
EOF
}

port=$1
authority cluster test-cluster
authority front test-front-proxy
leaf apiserver cluster /CN=kube-apiserver serverAuth IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc
leaf admin cluster /O=system:masters/CN=admin clientAuth
leaf controller-manager cluster /CN=system:kube-controller-manager clientAuth
leaf adapter-client cluster /CN=prometheus-adapter clientAuth
leaf adapter cluster /CN=prometheus-adapter serverAuth DNS:prometheus-adapter.monitoring.svc,DNS:localhost,IP:127.0.0.1
leaf front-client front /CN=front-proxy-client clientAuth
openssl genrsa -out accounts.key 2048
openssl rsa -in accounts.key -pubout -out accounts.pub
kubeconfig admin admin
kubeconfig controller-manager controller-manager
kubeconfig adapter adapter-client
