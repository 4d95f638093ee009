package shelf

import "testing"

func TestTidy(t *testing.T) {
	Empty(Fill(70))
}

func TestMessy(t *testing.T) {
	for i := 0; i < 1000; i++ {
		Fill(70)
	}
}
