package relz

import "io"

// A Workspace is memory that is used again: what several thousand small streams (kernel
// modules) need would otherwise be cleared and collected for each. Its zero value is ready. It must not be used
// by two goroutines at once.
type Workspace struct {
	guide *guide
	w     *window
	coder *chunkCoder
}

// Rebuild is the function of the same name. end is called when each stream is complete, with all of it
// written; without it a recipe of several streams is refused.
func (ws *Workspace) Rebuild(w io.Writer, plain io.Reader, size int64, recipe []byte, old *History, end func() error) error {
	s, err := parse(recipe)
	if err != nil {
		return err
	}
	s.Size = size
	if err := s.check(); err != nil || s.moves != old.moved() || s.priors != old.priorsOf().of(false) {
		return ErrRecipe
	}
	total := int64(0)
	for _, c := range s.chunks {
		total += int64(c.size)
	}
	var c coder
	if total != size || s.blocks && end == nil || !c.decode(s.decisions) {
		return ErrRecipe
	}
	content := io.LimitReader(plain, size)
	if s.X86 {
		content = newFilterReader(content, true)
	}
	k := &walk{w: ws.window(s.Dict, size, old), content: content, end: size}
	k.g = ws.guideFor(&c, k.w, old.history(), size, s.headBits)
	r := ws.chunkCoder(w, end)
	go r.run()
	err = k.rebuild(s.chunks, r)
	close(r.work)
	<-r.done
	if err == nil {
		err = r.err
	}
	if err == errLZMA {
		err = ErrRecipe
	}
	if err == nil {
		k.g.trained()
		err = r.finish()
	}
	return err
}

// rebuild gives all chunks to r.
func (k *walk) rebuild(chunks []chunk, r *chunkCoder) error {
	for i, ch := range chunks {
		if i == 0 || ch.control == chunkEnd {
			k.block(chunks[i:])
			if ch.control == chunkEnd {
				r.send(piece{chunk: ch, tokens: <-r.spare})
				continue
			}
		}
		if err := k.load(ch.size, r.pending.Wait); err != nil {
			return err
		}
		p := piece{chunk: ch, buf: k.w.buf, at: int(k.g.at - k.w.start), floor: int(max(k.w.floor-k.w.start, 0)), pos: k.g.at - k.w.floor}
		var ok bool
		if p.tokens, ok = k.decide(ch, <-r.spare); !ok {
			return errLZMA
		}
		if r.failed.Load() {
			return nil // the reason is in r.err
		}
		r.send(p)
	}
	return nil
}

// window returns an empty window, if possible in the memory of the one before, or of the
// one that Learn used.
func (ws *Workspace) window(dict int, size int64, old *History) *window {
	n := windowSize(dict, size)
	if old != nil && old.h.spare != nil {
		if ws.w == nil || cap(ws.w.buf) < n {
			ws.w = old.h.spare
		}
		old.h.spare = nil
	}
	if ws.w == nil || cap(ws.w.buf) < n {
		ws.w = newWindow(dict, size)
		return ws.w
	}
	*ws.w = window{buf: ws.w.buf[:n], keep: dict}
	clear(ws.w.buf)
	return ws.w
}

// guideFor returns a guide that knows nothing yet.
func (ws *Workspace) guideFor(c *coder, w *window, old *history, end int64, headBits int) *guide {
	if ws.guide == nil {
		ws.guide = new(guide)
	}
	ws.guide.reset(c, w, old, end, headBits, false)
	return ws.guide
}

// chunkCoder returns a coder of chunks that has written nothing yet.
func (ws *Workspace) chunkCoder(w io.Writer, end func() error) *chunkCoder {
	if ws.coder == nil {
		ws.coder = new(chunkCoder)
	}
	ws.coder.reset(w, end)
	return ws.coder
}
