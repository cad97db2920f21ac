#!/bin/sh
# Makes what fuzzing begins with anew: fuzz/seeds, which is checked in. Run it by hand, when there are
# new kinds of input. Private keys of the signers are thrown away.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seeds=$here/seeds
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$seeds"
mkdir -p "$seeds/certificate" "$seeds/cms" "$seeds/key" "$seeds/manifest" "$seeds/policy" "$seeds/raw" "$seeds/rotation" "$seeds/trust"
cd "$work"

printf 'what the signers of the seeds have signed\n' > content
cp content "$seeds/trust/content"
cat > ca.ext <<X
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
subjectKeyIdentifier=hash
X
cat > leaf.ext <<X
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=codeSigning
subjectKeyIdentifier=hash
X
printf 'basicConstraints=CA:FALSE\nkeyUsage=keyEncipherment\nextendedKeyUsage=emailProtection\n1.2.3.4=critical,DER:0500\nsubjectAltName=DNS:a.example\nnameConstraints=permitted;DNS:example\n' > odd.ext

make_key() { name=$1; shift; openssl genpkey -quiet -out "$name.key" "$@"; openssl pkey -in "$name.key" -pubout -out "$name.pub"; }
make_key root -algorithm EC -pkeyopt ec_paramgen_curve:P-256
make_key inter -algorithm EC -pkeyopt ec_paramgen_curve:P-384
make_key p256 -algorithm EC -pkeyopt ec_paramgen_curve:P-256
make_key p384 -algorithm EC -pkeyopt ec_paramgen_curve:P-384
make_key rsa -algorithm RSA -pkeyopt rsa_keygen_bits:2048
make_key weak -algorithm RSA -pkeyopt rsa_keygen_bits:1024
make_key ed25519 -algorithm ED25519

# Name, key, issuer, extensions.
certify() {
    openssl req -new -key "$2.key" -subj "/O=Acme/OU=Seeds/CN=$1" -out "$1.csr"
    if [ "$1" = "$3" ]; then
        openssl x509 -req -in "$1.csr" -signkey "$2.key" -days 36500 -extfile "$4.ext" -out "$1.crt" 2>/dev/null
    else
        openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -days 36500 -extfile "$4.ext" -out "$1.crt" 2>/dev/null
    fi
    openssl x509 -in "$1.crt" -outform DER -out "$1.der"
}
certify root root root ca
certify inter inter root ca
certify p256 p256 inter leaf
certify p384 p384 inter leaf
certify rsa rsa inter leaf
certify ed25519 ed25519 inter leaf
certify weak weak inter leaf
certify odd p256 inter odd
cp root.der "$seeds/trust/root.der"
for name in root inter p256 p384 rsa ed25519 weak odd; do cp "$name.der" "$seeds/certificate/$name"; done
cp p256.crt "$seeds/certificate/pem"

sign() {
    out=$1 name=$2; shift 2
    openssl cms -sign -binary -outform DER -in content -signer "$name.crt" -inkey "$name.key" "$@" -out "$seeds/cms/$out"
}
sign p256 p256 -certfile inter.crt
sign p384 p384 -certfile inter.crt
sign rsa rsa -certfile inter.crt
sign pss rsa -keyopt rsa_padding_mode:pss -keyopt rsa_pss_saltlen:digest -certfile inter.crt
sign attached p256 -certfile inter.crt -nodetach
sign keyid p256 -certfile inter.crt -keyid
sign noattr p256 -certfile inter.crt -noattr
sign several p256 -certfile inter.crt -signer p384.crt -inkey p384.key
sign weak weak -certfile inter.crt
sign untrusted p256 -certfile odd.crt
openssl cms -sign -binary -outform PEM -in content -signer p256.crt -inkey p256.key -certfile inter.crt -out "$seeds/cms/pem"

openssl pkeyutl -sign -rawin -inkey ed25519.key -in content -out "$seeds/raw/good"
cp ed25519.pub "$seeds/trust/ed25519.pub"

for name in p256 p384 rsa weak ed25519; do
    openssl pkey -pubin -in "$name.pub" -outform DER -out "$seeds/key/$name"
    cp "$name.pub" "$seeds/key/$name.pem"
done
# The example of RFC 8410, 10.3: a secret of nobody.
printf MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC | base64 -d > "$seeds/key/private"

printf '# portcullis rotation 1\n# signer: given\n' | cat - p256.pub > "$seeds/rotation/key"
printf '# portcullis rotation 1\n# signer: given\n' | cat - root.crt > "$seeds/rotation/certificate"

digest=$(sha256sum content | cut -d' ' -f1)
printf '%s  /bin/pump\n%s *bin/other\n\\%s  a\\nb\n' "$digest" "$digest" "$digest" > "$seeds/manifest/plain"
printf '# portcullis manifest 1\n# kinds: executable library\n%s  /bin/pump\n# kinds: script\n%s  /bin/x\n# end: 2 entries\n' "$digest" "$digest" > "$seeds/manifest/ours"
printf '# portcullis manifest 1\n# catalog: pump\n# version: 12\n# withdrawn: %s  /bin/old\n# withdrawn: \\%s  /bin/a\\\\b\n# kinds: executable\n%s  /bin/pump\n# end: 1 entries\n' "$digest" "$digest" "$digest" > "$seeds/manifest/catalog"

cat > "$seeds/policy/whole" <<X
name = "plant-7"
version = 3
mode = "enforce"
anonymous_memory = "deny"
mounted_devices = "closed"
include = ["base.manifest", { path = "vendor.sha256", kinds = ["library"] }]

[[allow]]
digest = "sha256:$digest"
kinds = ["executable", "library", "script", "module", "firmware", "kexec", "jit", "interpreter"]
path = "/opt/pump"

[[allow]]
fsverity = "sha256:$digest"
kinds = ["executable"]

[[deny]]
digest = "$digest"
comment = "CVE"

[[filesystem]]
type = "nfs"

[[filesystem]]
verity = "$digest"
kinds = ["library"]
X
cat > "$seeds/policy/signers" <<X
name = "p"
version = 1
mode = "audit"

[[signer]]
name = "acme"
slot = "maker"
certificate = ["new.pem", "old.pem"]
kinds = ["executable"]
signs = ["catalog", "file", "module"]
subject = { organization = "Acme", organizational_unit = "Firmware", common_name = "Release" }
usage = "1.3.6.1.5.5.7.3.3"
valid_from = 2026-01-01T00:00:00Z
valid_until = 2027-01-01

[[signer]]
name = "plant"
slot = "operator"
key = "plant.pub"
kinds = ["script"]

[[revoke]]
certificate = "AA:BB"

[[revoke]]
key = "$digest"

[[revoke]]
signer = "acme"

[[revoke]]
catalog = "pump"
below = 13
X

# Signatures that files carry themselves. The key ids and signatures may be any bytes.
mkdir -p "$seeds/ima" "$seeds/module"
bytes() { head -c "$1" /dev/zero | tr '\0' x; }
{ printf '\003\002\004abcd\001\000'; bytes 256; } > "$seeds/ima/rsa"
{ printf '\003\002\006abcd\000\107'; bytes 71; } > "$seeds/ima/p256"
{ printf '\006\003\004abcd\000\107'; bytes 71; } > "$seeds/ima/verity"
{ printf '\004\004'; bytes 32; } > "$seeds/ima/digest"
{ printf '\003\002\002abcd\000\107'; bytes 71; } > "$seeds/ima/weak"
{ bytes 64; printf '\000\000\002\000\000\000\000\000\000\000\000\050'
  printf '~Module signature appended~\n'; } > "$seeds/module/signed"
bytes 64 > "$seeds/module/unsigned"

# Bundles, with and without a signature.
mkdir -p "$seeds/bundle"
printf 'name = "p"\nversion = 1\nmode = "audit"\ninclude = [{ path = "m", kinds = ["library"] }]\n' > p.toml
printf '%064d  /a\n' 7 > m
portcullis policy build p.toml -o "$seeds/bundle/unsigned" --target device:pump
portcullis key generate -o bundle.pem
cp "$seeds/bundle/unsigned" "$seeds/bundle/signed"
portcullis policy sign "$seeds/bundle/signed" --key bundle.pem
